"""The report's section on compression: figure 6 at any ERR, and the path."""

from typing import Any

import numpy as np
import xarray as xr

from spectra.allocation.candidates import candidates_of
from spectra.allocation.path import GROUP, compression_path
from spectra.figures.allocation import path_curves, rank_reduction
from spectra.matrices import block_labels
from spectra.report.overview import bare
from spectra_data.errors import InputError

NUMBERS = 60_000
"""Most numbers of ranks in the page: about 300 kB."""
SHOWN_FIRST = 0.5
SPACING = 0.01


def compression(run: xr.DataTree) -> tuple[dict[str, Any] | None, list[str]]:
    """Data of the page's slider over ranks, or None; and notes on why it is missing."""
    if "weight" not in run["spectra"].to_dataset():
        return None, []
    try:
        path = _path(run)
    except InputError as error:
        return None, [f"Ranks are left out: {error}."]
    path = _thinned(path)
    full = np.minimum(path["rows"].to_numpy(), path["cols"].to_numpy())
    reductions = 1 - path["rank"].to_numpy() / full
    targets = path["target"].to_numpy()
    first = int(np.abs(targets - SHOWN_FIRST).argmin())
    roles = path["role"].to_numpy().astype(object)
    layers = block_labels(path["matrix"].to_numpy().tolist())
    members = {role: np.flatnonzero(roles == role) for role in dict.fromkeys(roles.tolist())}
    about = " (approximate spectra)" if path.attrs["approximate"] else ""
    figure = rank_reduction(
        {role: reductions[first, of_role] for role, of_role in members.items()},
        {role: [layers[i] for i in of_role] for role, of_role in members.items()},
        lrc_factor=path.attrs["lrc_factor"],
        subtitle=f"WeLore{about}",
    )
    curves = path_curves(
        path["err"].to_numpy(),
        path["budget"].to_numpy(),
        path["summed_error"].to_numpy() / len(full),
        path["lrc"].to_numpy() / len(full),
        subtitle=f"LRCs in factors, the others whole{about}",
    )
    return {
        "figure": bare(figure),
        "curves": bare(curves),
        "first": first,
        "members": [of_role.tolist() for of_role in members.values()],
        "full": full.tolist(),
        "ranks": path["rank"].to_numpy().tolist(),
        "format": path.attrs["format"],
    } | {
        name: path[name].to_numpy().tolist()
        for name in ("target", "err", "threshold", "budget", "bytes", "lrc")
    }, []


def _path(run: xr.DataTree) -> xr.Dataset:
    """The stored path if it belongs to the last snapshot; else a coarser one, computed now."""
    last = int(run["spectra"]["step"].to_numpy()[-1])
    if GROUP in run.children and run[GROUP].attrs.get("step") == last:
        return run[GROUP].to_dataset().compute()
    return compression_path(candidates_of(run), spacing=SPACING)


def _thinned(path: xr.Dataset) -> xr.Dataset:
    every = max(1, -(-path["rank"].size // NUMBERS))
    return path.isel(target=slice(None, None, every))

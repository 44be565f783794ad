"""The compression path: ranks and costs of a method at every target, for sliders and curves.

The path of WeLore over ERR can be stored next to the spectra, in the group ``path`` of the store.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from spectra.allocation.allocate import Maker
from spectra.allocation.candidates import Candidates, candidates_of
from spectra.allocation.costs import bytes_per_parameter, factored_bytes
from spectra.allocation.methods.registry import Chosen
from spectra.allocation.options import PATH_SPACING, AllocationSettings
from spectra.allocation.target import Target
from spectra.keywords import completed, spelled_out
from spectra.store.derived import write_group
from spectra.store.destination import require_writable
from spectra.store.location import local_path, require_address
from spectra.store.reader import Store, takes_store
from spectra_data.errors import InputError

GROUP = "path"


@spelled_out(AllocationSettings)
def compression_path(
    candidates: Candidates,
    settings: AllocationSettings | None = None,
    *,
    target: str = "err",
    spacing: float = PATH_SPACING,
    **keywords: Any,
) -> xr.Dataset:
    """Rank maps on a fine grid of targets, as arrays.

    Parameters
    ----------
    candidates
        Matrices of a snapshot.
    settings
        Method, storage and so on; or pass its fields as keywords.
    target
        Kind of the targets: ``err``, ``budget`` or ``threshold``.
    spacing
        Spacing of the grid over [0, 1]; unreachable points are left out.
    **keywords
        Fields of `AllocationSettings`.

    Returns
    -------
    Over ``target`` (the requested value): ``err`` reached, ``threshold`` (NaN if the method has
    none), ``budget``, ``parameters``, ``bytes``, ``lrc``, and ``summed_error``; over (target,
    matrix) ``rank``, ``factored`` and ``relative_error`` of what is stored.

    Raises
    ------
    InputError
        When no point of the grid can be reached, or the method does not accept the target.
    """
    if not 0.0005 <= spacing <= 0.5:
        raise InputError(f"the spacing of targets is between 0.0005 and 0.5, not {spacing:g}")
    settings = completed(AllocationSettings, settings, keywords)
    maker = Maker(candidates, settings)
    full = candidates.full_ranks
    targets, found = _reachable(maker, target, np.arange(0, 1 + spacing / 2, spacing).round(6))
    ranks = np.array([chosen.ranks for chosen in found])
    cuts = np.array([np.nan if c.threshold is None else c.threshold for c in found])
    factored = np.array([maker.factored(r) for r in ranks])
    stored = np.array([maker.parameters(r) for r in ranks])
    errors = np.stack([c.relative_errors[ranks[:, i]] for i, c in enumerate(candidates.each)], 1)
    errors = np.where(factored, errors, 0.0)
    low = (ranks < settings.lrc_factor * full).sum(axis=1)
    parameters = stored.sum(axis=1)
    rows, cols, kept_as = candidates.rows, candidates.cols, candidates.format
    small = factored_bytes(rows, cols, ranks, settings.storage, kept_as)
    whole = rows * cols * bytes_per_parameter(kept_as)
    of_matrix = ("target", "matrix")
    dataset = xr.Dataset(
        {
            "err": ("target", (full - ranks).sum(axis=1) / full.sum()),
            "threshold": ("target", cuts),
            "budget": ("target", parameters / float((candidates.rows * candidates.cols).sum())),
            "parameters": ("target", parameters),
            "bytes": ("target", np.where(factored, small, whole).sum(axis=1)),
            "lrc": ("target", low),
            "summed_error": ("target", errors.sum(axis=1)),
            "rank": (of_matrix, ranks.astype(np.int32)),
            "factored": (of_matrix, factored),
            "relative_error": (of_matrix, errors.astype(np.float32)),
        },
        coords={"target": targets, **_matrix_coordinates(candidates)},
        attrs={
            "method": settings.method,
            "target": target,
            "step": candidates.step,
            "normalisation": settings.normalisation,
            "lrc_factor": settings.lrc_factor,
            "storage": settings.storage,
            "format": candidates.format,
            "approximate": candidates.approximate,
        },
    )
    for name, (long_name, units) in DESCRIBED.items():
        dataset[name].attrs = {"long_name": long_name, "units": units}
    return dataset


def _reachable(
    maker: Maker, target: str, grid: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], list[Chosen]]:
    """The reachable targets, with the ranks of each."""
    found, reached, reason = [], [], InputError("there is no target")
    for value in grid:
        try:
            found.append(maker.choose(Target(target, float(value))))
            reached.append(float(value))
        except InputError as error:
            reason = error
    if not found:
        raise reason
    return np.array(reached), found


DESCRIBED = {
    "target": ("requested value", "1"),
    "err": ("effective rank reduction reached", "1"),
    "threshold": ("cut on normalised singular values", "1"),
    "budget": ("fraction of block parameters stored", "1"),
    "parameters": ("block parameters stored", "1"),
    "bytes": ("bytes of the block parameters stored", "byte"),
    "lrc": ("low-rank components", "1"),
    "summed_error": ("sum of the relative errors", "1"),
    "rank": ("rank", "1"),
    "factored": ("stored as factors", "1"),
    "relative_error": ("relative truncation error of what is stored", "1"),
}


def write_path(
    store: Store, *, step: int | None = None, spacing: float = PATH_SPACING
) -> xr.Dataset:
    """Compute the compression path of a snapshot, and store it next to the spectra.

    Parameters
    ----------
    store
        A run or a scan, opened or by its address.
    step
        Step of the snapshot; the last by default.
    spacing
        Spacing of the grid of ERR.

    Raises
    ------
    InputError
        When there is no such store or snapshot, or the store cannot be written.
    """
    address = require_address(store)
    if (folder := local_path(address)) is not None and folder.exists():
        require_writable(folder, folder=True)
    candidates = takes_store(candidates_of)(store, step)
    path = compression_path(candidates, spacing=spacing)
    write_group(address, GROUP, path)
    return path


def _matrix_coordinates(candidates: Candidates) -> dict[str, tuple[str, Any]]:
    matrices = [candidate.matrix for candidate in candidates.each]
    return {
        "matrix": ("matrix", np.array([m.name for m in matrices], object)),
        "layer": ("matrix", np.array([m.layer for m in matrices])),
        "role": ("matrix", np.array([m.role for m in matrices], object)),
        "rows": ("matrix", candidates.rows),
        "cols": ("matrix", candidates.cols),
    }

"""Compute WeLore's ranks and costs at every ERR, and store them next to the spectra.

The store's group `path` then holds threshold, ranks, LRCs, parameters, bytes and predicted error of
every matrix over a fine grid of ERR, for the dashboard's slider and the report's figures.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table

from spectra.allocation.options import PATH_SPACING
from spectra.commands.options import parse
from spectra.keywords import Share
from spectra.machine.console import Console

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Options:
    """Options of `spectra path`."""

    store: tyro.conf.Positional[str]
    """Store of a scan or a run, e.g. scan.zarr."""
    spacing: Share = PATH_SPACING
    """Spacing of the grid of ERR."""
    step: int | None = None
    """Step of the snapshot; the last by default."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="path", description=__doc__)
    from spectra.allocation.path import write_path

    path = write_path(options.store, step=options.step, spacing=options.spacing)
    if options.json:
        names = ["target", *(name for name, array in path.items() if array.dims == ("target",))]
        print(json.dumps({name: path[name].to_numpy().tolist() for name in names}))
        return 0
    _print(path)
    print(f"wrote {options.store}, group path ({path.sizes['target']} points of ERR)")
    return 0


def _print(path: "xr.Dataset") -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for name in ("ERR", "threshold", "LRC", "budget", "GB", "summed error"):
        table.add_column(name, justify="right")
    targets = path["target"].to_numpy()
    for wanted in range(1, 10):
        row = path.isel(target=int(abs(targets - wanted / 10).argmin()))
        table.add_row(
            f"{float(row.err):.3f}", f"{float(row.threshold):.4f}", f"{int(row.lrc)}",
            f"{float(row.budget):.4f}", f"{int(row.bytes) / 1e9:.3g}",
            f"{float(row.summed_error):.3f}",
        )  # fmt: skip
    Console().print(table)
    if path.attrs["approximate"]:
        print("from approximate spectra")

"""Heavy-tail and rank measures of every matrix, snapshot and kind of spectrum, as a table.

Writes a row for each recorded spectrum to --out (.csv, .parquet or .json), and prints the medians
of the last snapshot by role. docs/measures.md says what each column is and how to read it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

from spectra.commands.options import parse
from spectra.machine.console import Console
from spectra_data.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

SHOWN = ("stable_rank", "effective_rank", "alpha", "tail_size", "mp_spikes", "mp_soft_rank")
SHOWN_COMPATIBLE = ("alpha", "D", "stable_rank", "log_norm", "num_pl_spikes", "mp_softrank")


@dataclass(frozen=True)
class Options:
    """Options of `spectra metrics`."""

    store: tyro.conf.Positional[str]
    """Store to measure, e.g. runs/demo/spectra.zarr."""
    out: Path | None = None
    """File to write, .csv, .parquet or .json; none by default."""
    kinds: str | None = None
    """Quantities to measure, separated by commas: weight, gradient, update, training_gradient; by
    default all that were recorded."""
    last: bool = False
    """Leave out all snapshots but the last."""
    bootstrap: Annotated[int, tyro.conf.arg(metavar="REPLICAS")] = 0
    """Replicas for testing every power law, which fill alpha_error, p_value and verdict; 100 take
    0.03 s for a spectrum of 576 values. 0 leaves these columns out."""
    seed: int = 0
    """Seed of the bootstrap and of the random matrices to compare with."""
    compat: Literal["weightwatcher"] | None = None
    """Tool whose columns to compute instead, of the weights, as WeightWatcher 0.7.7 does."""
    json: bool = False
    """Print one JSON object with the rows on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="metrics", description=__doc__)
    if options.bootstrap < 0:
        raise InputError(f"--bootstrap is a number of replicas from 0 up, not {options.bootstrap}")
    from spectra.analysis.table import require_format, unrecorded_reasons, write_table
    from spectra.store.damage import unless_damaged
    from spectra.store.destination import messages_beside, require_writable

    if options.out is not None:
        require_format(options.out)
        require_writable(options.out)
    with unless_damaged(options.store):
        run, table = _measured(options)
    if options.out is not None:
        write_table(table, options.out)
    reasons = unrecorded_reasons(run, table)
    if options.json:
        print(json.dumps(_report(options, table, reasons), allow_nan=False))
        return 0
    with messages_beside(options.out):
        _print(options, table, reasons)
    return 0


def _measured(options: Options) -> "tuple[xr.DataTree, xr.Dataset]":
    """The run with the chosen snapshots, and their table."""
    from spectra.analysis.table import metrics_table
    from spectra.store.reader import open_store

    run = open_store(options.store)
    if run["spectra"].sizes["step"] == 0:
        raise InputError("the store has no snapshot yet: the first one is taken at the first step")
    if options.last:
        run = run.isel(step=[-1], missing_dims="ignore")
    kinds = None if options.kinds is None else [k.strip() for k in options.kinds.split(",")]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=None)
        table = metrics_table(
            run,
            kinds=kinds,
            replicas=options.bootstrap,
            seed=options.seed,
            compat=options.compat,
            progress=lambda done, count: bar.update(task, completed=done, total=count),
        )
    return run, table


def _print(options: Options, table: "xr.Dataset", reasons: dict[str, int]) -> None:
    from spectra.analysis.table import columns, recorded

    _print_medians(table)
    rows, missing = int(recorded(table).sum()), sum(reasons.values())
    if "approximate" in table.attrs:
        print("measured on approximate spectra: numbers about tails and single values are rough")
    for reason, count in reasons.items():
        print(f"left out: {count} spectra, {reason}")
    if options.out is not None:
        print(f"wrote {options.out} ({rows} rows of {len(columns(table))} columns)")
    elif not missing:
        print(f"{rows} spectra measured; --out FILE.csv writes them all")


def _report(options: Options, table: "xr.Dataset", reasons: dict[str, int]) -> dict[str, Any]:
    from spectra.analysis.table import columns

    found = columns(table)
    rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    return {
        "store": options.store,
        "out": None if options.out is None else str(options.out),
        "rows": [{name: _plain(value) for name, value in row.items()} for row in rows],
        "left_out": reasons,
        "approximate": "approximate" in table.attrs,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _print_medians(table: "xr.Dataset") -> None:
    from spectra.analysis.table import recorded

    names = [n for n in (SHOWN_COMPATIBLE if "compat" in table.attrs else SHOWN) if n in table]
    last = table.isel(step=-1)
    for kind in last["kind"].to_numpy():
        title = f"{kind} at step {int(last['step'])}: medians over matrices"
        printed = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
        printed.add_column("role")
        for name in ("n", *names, *(("power laws",) if "verdict" in table else ())):
            printed.add_column(name.replace("_", " "), justify="right")
        for role in dict.fromkeys(last["role"].to_numpy().tolist()):
            chosen = last.sel(kind=kind).isel(matrix=np.flatnonzero(last["role"] == role))
            there = recorded(chosen).to_numpy()
            if not there.any():
                continue
            values = [_median(chosen[name].to_numpy()[there]) for name in names]
            cells = [f"{value:.3g}" for value in values]
            if "verdict" in chosen:
                cells.append(f"{int((chosen['verdict'] == 'power law').sum())}")
            printed.add_row(str(role), str(int(there.sum())), *cells)
        if printed.row_count:
            Console().print(printed)


def _median(values: Any) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else np.nan

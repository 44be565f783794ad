"""Every measure of every matrix, snapshot and kind of spectrum, as one table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xarray as xr
from pyarrow import csv, parquet

from spectra.analysis.tails import attributes, kinds_of, stacked
from spectra.analysis.weightwatcher import weightwatcher_table
from spectra.metrics.measures import Progress, measures
from spectra.metrics.weightwatcher import FEWEST
from spectra.quantities import QUANTITIES
from spectra.store.destination import is_stream, write_result
from spectra.store.reader import takes_store
from spectra.store.schema import Status
from spectra_data.cells import inert
from spectra_data.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

IDENTITY = ("step", "matrix", "layer", "role", "rows", "cols", "kind")
FORMATS = (".csv", ".parquet", ".json")


@takes_store
def metrics_table(
    run: xr.DataTree,
    *,
    kinds: Sequence[str] | None = None,
    replicas: int = 0,
    seed: int = 0,
    level: float = 0.01,
    compat: str | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Every measure of every spectrum of a run or a scan.

    Parameters
    ----------
    run
        A store, opened or by its address.
    kinds
        Kinds of recorded spectra (weight, gradient, update, training_gradient); all by default.
    replicas
        Replicas of the bootstrap test of every power law; 0 leaves out `alpha_error`, `p_value` and
        `verdict`. 100 take 0.03 s for a spectrum of 576 values.
    seed
        Seed of the bootstrap and of the random matrices for comparison.
    level
        Share of pure-noise matrices that may show a spike.
    compat
        ``weightwatcher`` returns the columns of WeightWatcher 0.7.7 instead, for the weights, as
        WeightWatcher computes them.
    progress
        Called with the number of spectra done and the number of all.

    Returns
    -------
    (step, matrix, kind): a variable for each of `spectra.metrics.measures.MEASURES`, explained in
    docs/measures.md. NaN if a spectrum was not recorded; ``status/code`` in the store says why.

    Raises
    ------
    InputError
        When the store does not hold one of the kinds.

    Examples
    --------
    >>> table = spectra.metrics_table(run)  # doctest: +SKIP
    >>> table.stable_rank.sel(kind="weight").groupby("role").mean()  # doctest: +SKIP
    """
    held = kinds_of(run)
    chosen = held if kinds is None else list(dict.fromkeys(kinds))
    if not chosen:
        raise InputError("nothing to measure: no spectra were recorded, or no kind is chosen")
    if unknown := [kind for kind in chosen if kind not in held]:
        raise InputError(f"this store holds no spectra of {unknown[0]!r}; it has {', '.join(held)}")
    if compat not in (None, "weightwatcher"):
        raise InputError(f"`compat` must be weightwatcher, not {compat!r}")
    if compat:
        if replicas:
            raise InputError("weightwatcher does not test fits: leave out the bootstrap's replicas")
        if "weight" not in chosen:
            raise InputError("weightwatcher measures weights: add weight to the kinds")
        return weightwatcher_table(stacked(run, ["weight"]))
    spectra = stacked(run, chosen)
    rows, cols = _sides(spectra, chosen)
    values = measures(
        spectra.to_numpy(),
        rows,
        cols,
        replicas=replicas,
        seed=seed,
        level=level,
        progress=progress,
    )
    table = xr.Dataset(
        {name: (spectra.dims[:-1], value, attributes(name)) for name, value in values.items()},
        coords=spectra.coords,
    )
    table.attrs = {
        "model": json.dumps(run.attrs.get("model")),
        "replicas": replicas,
        "seed": seed,
        "false_spike_level": level,
    }
    if "weight_error" in run["spectra"].data_vars:
        table.attrs["approximate"] = "the spectra are approximate, from random probes"
    return table


def recorded(table: xr.Dataset) -> xr.DataArray:
    """Whether each entry of a table was recorded (step, matrix, kind)."""
    name = "spectral_norm" if "spectral_norm" in table else next(iter(table.data_vars))
    return table[name].notnull()


def unrecorded_reasons(run: xr.DataTree, table: xr.Dataset) -> dict[str, int]:
    """Number of spectra missing from a table, by reason, in the words of the store's status."""
    missing = ~recorded(table)
    if not missing.any():
        return {}
    reasons: dict[str, int] = {}
    status = run["status"]["code"].compute() if "status" in run.children else None
    for kind in table["kind"].to_numpy().tolist():
        absent = missing.sel(kind=kind).transpose("step", "matrix").to_numpy()
        codes = np.full(absent.shape, int(Status.UNSET))
        if status is not None and kind in status["part"].to_numpy().tolist():
            codes = status.sel(part=kind).transpose("step", "matrix").to_numpy()
        for code, count in zip(*np.unique(codes[absent], return_counts=True), strict=True):
            reason = f"{kind}: {Status(int(code)).reason}"
            if code == Status.MEASURED:
                reason = f"{kind}: fewer than {FEWEST} values, which weightwatcher leaves out"
            reasons[reason] = reasons.get(reason, 0) + int(count)
    return reasons


def columns(table: xr.Dataset) -> dict[str, Any]:
    """A table as columns of equal length, one row per recorded spectrum."""
    rows = recorded(table)
    flat = rows.to_numpy().reshape(-1)
    found = {}
    for name in (*IDENTITY, *table.data_vars):
        found[str(name)] = table[name].broadcast_like(rows).transpose(*rows.dims).to_numpy()
    chosen = {name: values.reshape(-1)[flat] for name, values in found.items()}
    if "approximate" in table.attrs:
        chosen["approximate"] = np.ones(int(flat.sum()), bool)
    return chosen


def _sides(spectra: xr.DataArray, kinds: Sequence[str]) -> tuple[npt.NDArray[np.int64], ...]:
    """Rows and columns of the array behind each spectrum: (matrix, kind) each."""
    weights = np.stack([spectra["rows"].to_numpy(), spectra["cols"].to_numpy()], axis=1).tolist()
    sides = [[QUANTITIES[kind].sides(*weight) for kind in kinds] for weight in weights]
    rows, cols = np.moveaxis(np.array(sides, np.int64), -1, 0)
    return rows, cols


def to_pandas(table: xr.Dataset) -> "pd.DataFrame":
    """A table as a pandas frame, one row per recorded spectrum."""
    import pandas as pd

    return pd.DataFrame(columns(table))


def write_table(table: xr.Dataset, out: Path) -> int:
    """Write a table as .csv, .parquet or .json (a list of objects); return the rows written.

    A device or a pipe without an ending, e.g. ``/dev/stdout``, receives CSV. Missing and undefined
    values are empty fields in CSV, and null in the other formats. In CSV, a text that a spreadsheet
    would run as a formula is preceded by an apostrophe.

    Raises
    ------
    InputError
        When the name ends in something else, or the file cannot be written.
    """
    require_format(out)
    found = columns(table)
    if out.suffix not in (".json", ".parquet"):
        found = {name: _inert(values) for name, values in found.items()}
    arrow = pa.table({name: _arrow(values) for name, values in found.items()})
    sink = pa.BufferOutputStream()
    if out.suffix == ".json":
        text = json.dumps(arrow.to_pylist(), indent=1, allow_nan=False)
        content = text.encode()
    else:
        write = parquet.write_table if out.suffix == ".parquet" else csv.write_csv
        write(arrow, sink)
        content = sink.getvalue().to_pybytes()
    write_result(out, content)
    return int(arrow.num_rows)


def require_format(out: Path) -> None:
    """Require a file name with the ending of a table format."""
    if out.suffix not in FORMATS and not is_stream(out):
        raise InputError(f"a table's file name ends in {', '.join(FORMATS)}, not in {out.suffix!r}")


def _inert(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Cells of a column in CSV; numbers as they are."""
    if values.dtype.kind in "biuf":
        return values
    return np.array([inert(value) for value in values.tolist()], object)


def _arrow(values: Any) -> pa.Array:
    if values.dtype.kind == "f":
        return pa.array(values, mask=~np.isfinite(values))
    return pa.array(values.tolist())

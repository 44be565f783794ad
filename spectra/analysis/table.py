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
from spectra.store.schema import Status
from spectra_data.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

IDENTITY = ("step", "matrix", "layer", "role", "rows", "cols", "kind")
FORMATS = (".csv", ".parquet", ".json")


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
        An opened store.
    kinds
        Of those recorded (weight, gradient, update, training_gradient); all by default.
    replicas
        Of the bootstrap test of every power law; 0 leaves out `alpha_error`, `p_value` and
        `verdict`. 100 take 0.03 s for a spectrum of 576 values.
    seed
        Of the bootstrap and of the random matrices compared with.
    level
        Share of pure-noise matrices that may show a spike.
    compat
        ``weightwatcher`` gives the columns of WeightWatcher 0.7.7 instead, of the weights, as it
        computes them.
    progress
        Called with the spectra done and all of them, as it goes.

    Returns
    -------
    (step, matrix, kind): a variable for each of `spectra.metrics.measures.MEASURES`, explained in
    docs/measures.md. NaN where a spectrum was not recorded; ``status/code`` in the store says why.

    Raises
    ------
    InputError
        For a kind that the store does not hold.

    Examples
    --------
    >>> table = spectra.metrics_table(run)  # doctest: +SKIP
    >>> table.stable_rank.sel(kind="weight").groupby("role").mean()  # doctest: +SKIP
    """
    held = kinds_of(run)
    chosen = held if kinds is None else list(dict.fromkeys(kinds))
    if not chosen:
        raise InputError("there is nothing to measure: no spectra were recorded, or none is chosen")
    if unknown := [kind for kind in chosen if kind not in held]:
        raise InputError(f"this store holds no spectra of {unknown[0]!r}; it has {', '.join(held)}")
    if compat not in (None, "weightwatcher"):
        raise InputError(f"tables are compatible with weightwatcher, not with {compat!r}")
    if compat:
        if replicas:
            raise InputError("weightwatcher tests no fits: leave out the bootstrap's replicas")
        if "weight" not in chosen:
            raise InputError("weightwatcher measures weights, and those are not among the kinds")
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
        table.attrs["approximate"] = "the spectra are, from random probes"
    return table


def recorded(table: xr.Dataset) -> xr.DataArray:
    """Which entries of a table were recorded (step, matrix, kind)."""
    name = "spectral_norm" if "spectral_norm" in table else next(iter(table.data_vars))
    return table[name].notnull()


def unrecorded_reasons(run: xr.DataTree, table: xr.Dataset) -> dict[str, int]:
    """Why spectra are not in a table, with how many: in the words of the store's status."""
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
    """A table as columns of equal length, a row for each recorded spectrum."""
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
    """Rows and columns of what each spectrum is of: (matrix, kind) each."""
    weights = np.stack([spectra["rows"].to_numpy(), spectra["cols"].to_numpy()], axis=1).tolist()
    sides = [[QUANTITIES[kind].sides(*weight) for kind in kinds] for weight in weights]
    rows, cols = np.moveaxis(np.array(sides, np.int64), -1, 0)
    return rows, cols


def to_pandas(table: xr.Dataset) -> "pd.DataFrame":
    """A table as a pandas frame, a row for each recorded spectrum."""
    import pandas as pd

    return pd.DataFrame(columns(table))


def write_table(table: xr.Dataset, out: Path) -> int:
    """Write a table as .csv, .parquet or .json (a list of objects); returns the rows written.

    To a device or a pipe without an ending, e.g. ``/dev/stdout``, it is written as CSV.

    What is missing or undefined is an empty field in CSV and null in the others.

    Raises
    ------
    InputError
        For another ending, or a file that cannot be written.
    """
    require_format(out)
    arrow = pa.table({name: _arrow(values) for name, values in columns(table).items()})
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
    """Require the name of a file that a table can be written to."""
    if out.suffix not in FORMATS and not is_stream(out):
        raise InputError(f"a table ends in {', '.join(FORMATS)}, not in {out.suffix!r}")


def _arrow(values: Any) -> pa.Array:
    if values.dtype.kind == "f":
        return pa.array(values, mask=~np.isfinite(values))
    return pa.array(values.tolist())

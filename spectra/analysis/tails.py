"""Power-law tails of recorded spectra."""

import numpy as np
import xarray as xr

from spectra.metrics import tails
from spectra.metrics.measures import MEASURES, tail_measures
from spectra.quantities import QUANTITIES
from spectra.store.reader import Store, takes_store
from spectra.store.selection import selectable
from spectra_data.errors import InputError


def heavy_tail(
    spectra: xr.DataArray | Store,
    *,
    replicas: int = 100,
    seed: int = 0,
    ks: tails.Convention = "left",
    min_tail: int = tails.MIN_TAIL,
) -> xr.Dataset:
    r"""Power-law fit of the eigenvalues of every spectrum, with its tests and a verdict.

    Parameters
    ----------
    spectra
        Singular values with a dimension ``index``, as in ``run["spectra"].weight``; with the
        coordinates rows and cols. Or a store, opened or by its address, whose weights to measure.
    replicas
        Replicas of the bootstrap, which is most of the work: 100 take 0.03 s for a spectrum of 576
        values. 0 leaves out `alpha_error`, `p_value` and `verdict`.
    seed
        Seed of the bootstrap.
    ks, min_tail
        As for `spectra.metrics.tails.power_law`.

    Returns
    -------
    In the dimensions of `spectra` without ``index``: `alpha`, `alpha_sigma`, `x_min` (an
    eigenvalue), `ks_distance`, `tail_size`; `alpha_error`, `p_value` and `verdict`; and for the
    exponential, the lognormal and the truncated power law the likelihood ratio
    (`lognormal_ratio`; positive favours the power law) and its p-value (`lognormal_p`). The
    functions of `spectra.metrics.tails` and `spectra.metrics.goodness` cite the sources.

    Raises
    ------
    InputError
        When `spectra` has no dimension ``index``, or no coordinates rows and cols.

    Examples
    --------
    >>> tail = spectra.heavy_tail(run["spectra"].weight.isel(step=-1))  # doctest: +SKIP
    >>> (tail.verdict == "power law").groupby("role").mean()  # doctest: +SKIP
    """
    measured = spectra if isinstance(spectra, xr.DataArray) else _weights(spectra)
    require_spectra(measured)
    ordered = measured.transpose(..., "index").compute()
    dims = ordered.dims[:-1]
    rows, cols = (ordered[side].broadcast_like(ordered.isel(index=0)) for side in ("rows", "cols"))
    found = tail_measures(
        ordered.to_numpy(),
        rows.to_numpy(),
        cols.to_numpy(),
        ks=ks,
        min_tail=min_tail,
        replicas=replicas,
        seed=seed,
    )
    coords = {name: c for name, c in ordered.coords.items() if "index" not in c.dims}
    variables = {name: (dims, value, attributes(name)) for name, value in found.items()}
    measures: xr.Dataset = selectable(xr.Dataset(variables, coords=coords))
    return measures


@takes_store
def _weights(run: xr.DataTree) -> xr.DataArray:
    """The spectra of the weights, in memory."""
    if "weight" not in run["spectra"].data_vars:
        raise InputError("this store holds no spectra of weights")
    weights: xr.DataArray = run["spectra"].to_dataset()["weight"]
    return weights.compute()


def attributes(name: str) -> dict[str, str]:
    """Attributes of a measure's variable."""
    measure = MEASURES[name]
    return {"long_name": measure.long_name, "units": measure.units}


def require_spectra(spectra: xr.DataArray) -> None:
    """Require singular values with the sides of their matrices."""
    missing = [name for name in ("rows", "cols") if name not in spectra.coords]
    if "index" not in spectra.dims or missing:
        raise InputError(
            "spectra need a dimension `index` and the coordinates `rows` and `cols`, as in "
            'run["spectra"].weight'
        )


def kinds_of(run: xr.DataTree) -> list[str]:
    """Kinds of spectra that a run holds, in the store's order."""
    held = run["spectra"].to_dataset().data_vars
    return [kind for kind in QUANTITIES if kind in held]


def stacked(run: xr.DataTree, kinds: list[str] | None = None) -> xr.DataArray:
    """Spectra of several kinds as one array (step, matrix, kind, index), read into memory."""
    spectra = run["spectra"].to_dataset()
    chosen = kinds_of(run) if kinds is None else kinds
    parts = [spectra[kind].compute() for kind in chosen]
    together = xr.concat(parts, dim=xr.Variable("kind", np.array(chosen, dtype=object)))
    return together.transpose("step", "matrix", "kind", "index")

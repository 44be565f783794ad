"""Gradient similarity over training."""

from typing import Literal, cast

import numpy as np
import xarray as xr

from spectra.analysis.gradients import MEMORY, gradient_products
from spectra.analysis.stored import unread
from spectra.metrics import dynamics, similarity
from spectra.store.reader import takes_store
from spectra_data.errors import InputError

Method = Literal["auto", "exact", "sketch"]
SKETCH_BYTES = 1 << 24
"""Bytes of the sketches in work at a time."""


@takes_store
def cosine_similarity(
    run: xr.DataTree, method: Method = "auto", *, memory: int = MEMORY
) -> xr.DataArray:
    r"""Cosine similarity of the probe gradients of all pairs of snapshots, matrix by matrix.

    Parameters
    ----------
    run
        A store, opened or by its address, with ``sketches`` or raw ``gradients``.
    method
        ``exact`` reads the raw gradients, each byte once; ``sketch`` estimates from the sketches,
        hundreds of times less to read; ``auto`` uses sketches if there are any.
    memory
        Bytes that the raw gradients in work may use, on one machine.

    Returns
    -------
    (matrix, step, step\_), lazily, in [-1, 1]. The attribute ``approximate`` says whether they are
    estimates; ``standard_error`` is then the largest standard error of an entry (that of a cosine
    of 0), and `cosine_standard_error` returns each entry's own. Exact cosines are right to about
    1e-6. NaN where a gradient is zero or was not recorded.

    Raises
    ------
    InputError
        When the store holds neither sketches nor raw gradients, or not those of `method`.

    Examples
    --------
    >>> cosine = spectra.cosine_similarity(run)  # doctest: +SKIP
    >>> cosine.sel(matrix="model.layers.0.self_attn.q_proj").plot()  # doctest: +SKIP
    """
    if method not in ("auto", "exact", "sketch"):
        raise InputError(f"`method` must be auto, exact or sketch, not {method!r}")
    sketched, raw = "sketches" in run.children, "gradients" in run.children
    if method == "auto" and not (sketched or raw):
        raise InputError(
            "this store holds no gradient sketches and no raw gradients: record with a probe batch "
            "and `sketch` above 0"
        )
    if method == "exact" or (method == "auto" and not sketched):
        return _exact(run, memory)
    return _sketched(run)


def _exact(run: xr.DataTree, memory: int) -> xr.DataArray:
    cosine = xr.apply_ufunc(
        dynamics.cosines_from_products,
        gradient_products(run, memory).chunk({"step": -1, "step_": -1}),
        input_core_dims=[["step", "step_"]],
        output_core_dims=[["step", "step_"]],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    cosine.attrs = {
        "long_name": "cosine similarity of probe gradients",
        "units": "1",
        "approximate": False,
    }
    return cast(xr.DataArray, cosine.rename("cosine_similarity"))


def _sketched(run: xr.DataTree) -> xr.DataArray:
    if "sketches" not in run.children:
        raise InputError(
            "this store holds no gradient sketches: record with a probe batch and `sketch` above 0"
        )
    stored = unread(run, "sketches/gradient")
    matrices = max(1, SKETCH_BYTES // max(1, 4 * stored[:, :1].size))
    sketches = stored.chunk({"step": -1, "matrix": matrices, "component": -1})
    count, components = sketches.sizes["step"], sketches.sizes["component"]
    cosine = xr.apply_ufunc(
        similarity.cosine_similarity,
        sketches,
        input_core_dims=[["step", "component"]],
        output_core_dims=[["step", "step_"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"step_": count}},
    ).assign_coords(step_=sketches["step"].to_numpy())
    cosine.attrs = {
        "long_name": "cosine similarity of probe gradients",
        "units": "1",
        "approximate": True,
        "components": components,
        "standard_error": float(similarity.sketched_cosine_error(0.0, components)),
    }
    return cast(xr.DataArray, cosine.rename("cosine_similarity"))


def cosine_standard_error(cosine: xr.DataArray) -> xr.DataArray:
    """Standard error of every entry of an approximate `cosine_similarity`, in its dimensions."""
    error = xr.apply_ufunc(
        similarity.sketched_cosine_error, cosine, cosine.attrs["components"], dask="allowed"
    )
    return cast(xr.DataArray, error.assign_attrs(long_name="standard error", units="1"))

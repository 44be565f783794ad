"""Gradient similarity over training."""

from typing import cast

import numpy as np
import xarray as xr

from data.errors import InputError
from spectra.metrics import similarity


def cosine_similarity(run: xr.DataTree) -> xr.DataArray:
    r"""Cosine similarity of the probe gradients of all pairs of snapshots, matrix by matrix.

    Parameters
    ----------
    run
        An opened store with ``sketches``.

    Returns
    -------
    (matrix, step, step\_), lazily, in [-1, 1]. It is estimated from sketches and says so: the
    attribute ``approximate`` is True, ``standard_error`` is the largest standard error of an entry
    (that of a cosine of 0), and `cosine_standard_error` gives each entry's own.

    Raises
    ------
    InputError
        When the store holds no sketches.

    Examples
    --------
    >>> cosine = spectra.cosine_similarity(run)  # doctest: +SKIP
    >>> cosine.sel(matrix="model.layers.0.self_attn.q_proj").plot()  # doctest: +SKIP
    """
    if "sketches" not in run.children:
        raise InputError(
            "this store holds no gradient sketches: record with a probe batch and `sketch` above 0"
        )
    sketches = run["sketches"]["gradient"].chunk({"step": -1, "matrix": 1, "component": -1})
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

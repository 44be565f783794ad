"""A table in WeightWatcher's columns."""

import numpy as np
import xarray as xr

from spectra.metrics import weightwatcher

COLUMNS = tuple(weightwatcher.COLUMNS)


def weightwatcher_table(spectra: xr.DataArray) -> xr.Dataset:
    """WeightWatcher 0.7.7's columns of every spectrum.

    Parameters
    ----------
    spectra
        Singular values (step, matrix, kind, index) with the coordinates rows and cols.

    Returns
    -------
    (step, matrix, kind), a variable for each of `spectra.metrics.weightwatcher.COLUMNS`; NaN if a
    spectrum is missing or has fewer than 8 values.
    """
    values = spectra.to_numpy()
    dims, shape = spectra.dims[:-1], values.shape[:-1]
    sides = [spectra[side].broadcast_like(spectra[..., 0]).to_numpy() for side in ("rows", "cols")]
    table = {name: np.full(shape, np.nan) for name in COLUMNS}
    for index in np.ndindex(shape):
        rows, cols = (int(side[index]) for side in sides)
        for name, value in weightwatcher.columns(values[index], rows, cols).items():
            table[name][index] = value
    described = weightwatcher.COLUMNS
    return xr.Dataset(
        {n: (dims, v, {"long_name": described[n], "units": "1"}) for n, v in table.items()},
        coords={name: c for name, c in spectra.coords.items() if "index" not in c.dims},
        attrs={"compat": "weightwatcher 0.7.7"},
    )

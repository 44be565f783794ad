"""A recorded array before it is cut into dask blocks, so that reading fits the work.

An opened store has a dask block for every stored chunk, which holds one snapshot. Work on one
matrix over all snapshots would need thousands of blocks, each a task of its own; one read of them
all needs a fifth of the time.
"""

import numpy as np
import xarray as xr

from spectra.store.location import address_of
from spectra.store.reader import files_of
from spectra_data.errors import InputError


def unread(run: xr.DataTree, path: str) -> xr.DataArray:
    """An array of a run by its path, e.g. ``subspaces/gradient_left``: not read, not chunked.

    Opened anew from the store's address. A tree that was built manually does not know the address
    and returns its own array. Steps and matrices selected from the run stay selected; other changes
    to an opened tree's arrays have no effect here. Raw gradients stay as stored, in the bits of
    bfloat16.

    Raises
    ------
    InputError
        When there is no snapshot, or a single step was selected without keeping its dimension.
    """
    group, _, name = path.rpartition("/")
    opened: xr.DataArray = run[group].to_dataset()[name]
    if "step" not in opened.dims or "matrix" not in opened.dims:
        raise InputError(
            "select steps and matrices by lists or slices, so that both stay dimensions"
        )
    if opened.sizes["step"] == 0:
        raise InputError("the store has no snapshot yet: the first one is taken at the first step")
    source = address_of(run)
    if source is None:
        return opened
    files = files_of(source, run.encoding.get("within"))
    stored: xr.DataArray = xr.open_zarr(files, group=group, chunks=None)[name]
    steps = xr.open_zarr(files, group=group.split("/")[0], chunks=None)["step"].to_numpy()
    names = stored["matrix"].to_numpy().tolist()
    rows = [int(np.flatnonzero(steps == step)[0]) for step in opened["step"].to_numpy()]
    kept = [names.index(matrix) for matrix in opened["matrix"].to_numpy().tolist()]
    chosen = stored.isel(step=_as_slice(rows), matrix=_as_slice(kept))
    return chosen.assign_coords(step=opened["step"].to_numpy())


def _as_slice(indices: list[int]) -> slice | list[int]:
    """Consecutive indices as a slice, which zarr reads faster."""
    if indices and indices == list(range(indices[0], indices[0] + len(indices))):
        return slice(indices[0], indices[0] + len(indices))
    return indices

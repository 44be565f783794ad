"""A recorded array that is not cut into dask blocks yet, so that reading fits the work.

An opened store has a block for every stored chunk, one of a snapshot. Work that needs one matrix
over all snapshots would ask for thousands of blocks, each a task of its own; read in one piece they
take a fifth of the time.
"""

import numpy as np
import xarray as xr

from spectra_data.errors import InputError


def unread(run: xr.DataTree, path: str) -> xr.DataArray:
    """An array of a run by its path, e.g. ``subspaces/gradient_left``: not read, not chunked.

    Opened anew from the store's address; a tree that does not know it, since it was put together by
    hand, gives what it holds. Steps and matrices that were selected from the run stay selected;
    other changes to an opened tree's arrays do not reach what is read here. Raw gradients come as
    they are stored, in the bits of bfloat16.

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
    source = run.encoding.get("source")
    if source is None:
        return opened
    stored: xr.DataArray = xr.open_zarr(source, group=group, chunks=None)[name]
    steps = xr.open_zarr(source, group=group.split("/")[0], chunks=None)["step"].to_numpy()
    names = stored["matrix"].to_numpy().tolist()
    rows = [int(np.flatnonzero(steps == step)[0]) for step in opened["step"].to_numpy()]
    kept = [names.index(matrix) for matrix in opened["matrix"].to_numpy().tolist()]
    chosen = stored.isel(step=_as_slice(rows), matrix=_as_slice(kept))
    return chosen.assign_coords(step=opened["step"].to_numpy())


def _as_slice(places: list[int]) -> slice | list[int]:
    """Consecutive places as a slice, which zarr reads faster."""
    if places and places == list(range(places[0], places[0] + len(places))):
        return slice(places[0], places[0] + len(places))
    return places

"""Results that are kept beside the spectra they come from, in a group of their own."""

import contextlib
from collections.abc import Iterator

import xarray as xr
import zarr
from zarr.storage import MemoryStore

from spectra.store.location import Location, local_path, zarr_store
from spectra.store.lock import locked
from spectra.store.writer import consolidate, copy_keys


def write_group(store: Location, name: str, dataset: xr.Dataset) -> None:
    """Write a group into a store, in the place of an earlier one.

    Raises
    ------
    InputError
        When another process is writing to the store.
    """
    new = MemoryStore()
    dataset.to_zarr(new, group=name, zarr_format=3, consolidated=False, mode="w")
    with _held(store):
        target = zarr_store(store)
        root = zarr.open_group(target, mode="r+", use_consolidated=False)
        if name in root:
            del root[name]
            consolidate(target)
        copy_keys(new, target, lambda key: key.startswith(f"{name}/"))
        consolidate(target)


@contextlib.contextmanager
def _held(store: Location) -> Iterator[None]:
    path = local_path(store)
    if path is None:
        yield
        return
    with locked(path):
        yield

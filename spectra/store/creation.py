"""A new store, in memory: every group and array of a layout, with coordinates, without rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from spectra.store.checksums import ALGORITHM, ATTRIBUTE, FILES, FileRecord
from spectra.store.layout import Layout
from spectra.store.metadata import consolidate, digests, keys, write
from spectra.store.schema import SCHEMA, Variable


def new_store(layout: Layout, attrs: Mapping[str, Any]) -> MemoryStore:
    """Make a store that has yet to be copied to its place."""
    store = MemoryStore()
    described = dict(attrs) | {"schema": SCHEMA, ATTRIBUTE: ALGORITHM}
    root = zarr.create_group(store, zarr_format=3, attributes=described, overwrite=True)
    for group_name, variables in layout.groups().items():
        coordinates = [v.name for v in variables if v.dims == ("matrix",) and v.name != "matrix"]
        group_attrs = {"coordinates": " ".join(coordinates)} if coordinates else {}
        group = root.create_group(group_name, attributes=group_attrs)
        for variable in variables:
            array = _create_array(group, variable)
            if variable.dims in (("matrix",), ("part",)):
                kind = object if variable.dtype == "string" else np.int64
                array[:] = np.asarray(layout.coordinate_values(group_name, variable.name), kind)
    consolidate(store)
    found = digests(store, keys(store))
    record = FileRecord({key: [checksum] for key, checksum in found.items()})
    write(store, FILES, record.pack())
    return store


def _create_array(group: zarr.Group, variable: Variable) -> zarr.Array[Any]:
    # checksums tell a damaged chunk from a surprising spectrum
    compressors: Any = ZstdCodec(checksum=True)
    if variable.shards:  # large: shuffling bits saves a third, and most of the time
        compressors = [BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec()]
    return group.create_array(
        variable.name,
        shape=variable.shape,
        chunks=variable.chunks,
        shards=variable.shards,
        dtype=variable.dtype,
        fill_value=variable.fill,
        compressors=compressors,
        dimension_names=variable.dims,
        attributes=variable.attrs,
    )

"""Writing a store row by row, so that a reader never sees a half row and a kill costs none.

The order within a row is the layout's: every array, then the steps that make the row exist. On a
local disk, files are on it before the next write begins (`durable`); elsewhere an object is there
when the service says so.
"""

import asyncio
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ZarrUserWarning
from zarr.storage import MemoryStore

from data.errors import InputError
from data.partial import partial_folder, remove_leftovers
from spectra.store.durable import DurableStore, sync_folder
from spectra.store.layout import BLOCK, TRAIN_CHUNK, Layout
from spectra.store.location import Location, exists, local_path, zarr_store
from spectra.store.lock import FolderLock
from spectra.store.schema import SCHEMA, UNSET, Variable

Attributes = Mapping[str, Any]
Rows = Sequence[Mapping[str, float]]
Arrays = Mapping[str, npt.NDArray[Any]]
PATIENCE = 10.0
"""Seconds to wait for the end of a process that holds the store: one that was just killed."""


class StoreWriter:
    """Appends snapshots and training steps to a store that it alone writes."""

    def __init__(self, location: Location, layout: Layout, lock: FolderLock | None) -> None:
        self.layout = layout
        self.lock = lock
        self._store = zarr_store(location)
        self._root = zarr.open_group(self._store, mode="r+", use_consolidated=False)
        self._attrs = dict(self._root.attrs)
        self._snapshots = self._committed("spectra/step")
        self._train_rows = self._committed("train/train_step")

    @classmethod
    def create(cls, location: Location, layout: Layout, attrs: Attributes) -> Self:
        """Make a new store, empty but whole.

        Raises
        ------
        InputError
            When something is there already.
        OSError
            When the place cannot be written.
        """
        if exists(location):
            raise InputError(
                f"{location} exists already: resume it, remove it, or choose another name"
            )
        new = _new_store(layout, attrs)
        path = local_path(location)
        if path is None:
            _copy(new, zarr_store(location))
            return cls(location, layout, None)
        # the store gets its name once it is whole, so an interrupted creation leaves no half store
        path = path.absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        with partial_folder(path) as partial:
            _copy(new, DurableStore(partial))
            try:
                partial.rename(path)
            except OSError as error:
                if not path.exists():
                    raise
                raise InputError(f"another process has just made {location}: resume it") from error
        sync_folder(path.parent)
        return cls(location, layout, _lock(path))

    @classmethod
    def resume(cls, location: Location, layout: Layout, attrs: Attributes, step: int) -> Self:
        """Open a store to go on after training step `step`: later rows are unset first.

        Raises
        ------
        InputError
            When the store was made by another model, probe batch or configuration, or another
            process is writing to it.
        """
        from spectra.store.reader import check_schema

        check_schema(location)
        path = local_path(location)
        lock = _lock(path) if path else None
        try:
            if path:
                remove_leftovers(path, below=True)
            root = zarr.open_group(zarr_store(location), mode="r+", use_consolidated=False)
            _require_same(location, root, layout, attrs)
            for name in (*reversed(layout.step_arrays()), "train/train_step"):
                array = cast("zarr.Array[Any]", root[name])
                steps = np.asarray(array[:])
                if (steps > step).any():
                    array[:] = np.where(steps > step, UNSET, steps)
            writer = cls(location, layout, lock)
            writer._finish_growth()
        except BaseException:
            if lock:
                lock.release()
            raise
        return writer

    @classmethod
    def of_child(cls, location: Location, layout: Layout) -> Self:
        """Open a store that the process which started this one holds."""
        return cls(location, layout, None)

    @property
    def steps(self) -> list[int]:
        """Steps of the snapshots that exist."""
        committed = np.asarray(self._array("spectra/step")[: self._snapshots])
        return [int(step) for step in committed]

    def close(self) -> None:
        """Let go of the store."""
        if self.lock:
            self.lock.release()

    def write_snapshot(self, step: int, arrays: Arrays) -> None:
        """Write one row, then announce it.

        Parameters
        ----------
        step
            Optimizer steps done; greater than that of the row before.
        arrays
            By path, e.g. ``spectra/weight``: (matrix, index). What is not given stays missing.
        """
        self._require_held()
        row = self._snapshots
        self._reserve("step", row + 1, BLOCK)
        for path, variable in self.layout.snapshot_arrays().items():
            # a row that an interrupted process left half written must not show through
            self._array(path)[row] = arrays.get(path, variable.fill)
        for path in self.layout.step_arrays():
            self._array(path)[row] = step
        self._snapshots += 1

    def write_piece(self, path: str, members: slice, values: npt.NDArray[Any]) -> None:
        """Write some matrices of the row that is not announced yet."""
        self._require_held()
        self._reserve("step", self._snapshots + 1, BLOCK)
        self._array(path)[self._snapshots, members] = values

    def piece(self, path: str) -> npt.NDArray[Any]:
        """What there is of an array in the row that is not announced yet."""
        self._reserve("step", self._snapshots + 1, BLOCK)
        return np.asarray(self._array(path)[self._snapshots])

    def form(self, path: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Dtype and chunks of an array, which an older version may have chosen otherwise."""
        array = self._array(path)
        return np.dtype(array.dtype), array.chunks

    def announce(self, step: int) -> None:
        """Make the row that was written in pieces a snapshot."""
        self._require_held()
        for path in self.layout.step_arrays():
            self._array(path)[self._snapshots] = step
        self._snapshots += 1

    def describe(self, attrs: Attributes) -> None:
        """Set attributes of the store beside those that it has."""
        self._require_held()
        self._attrs = self._attrs | dict(attrs)
        replace_attributes(self._store, self._attrs)

    @property
    def attrs(self) -> dict[str, Any]:
        """The store's attributes."""
        return dict(self._attrs)

    def write_train_rows(self, rows: Rows) -> None:
        """Append training steps; every row holds ``train_step`` and any of the schema's metrics."""
        if not rows:
            return
        self._require_held()
        start, stop = self._train_rows, self._train_rows + len(rows)
        self._reserve("train_step", stop, TRAIN_CHUNK)
        for variable in self.layout.groups()["train"][:-1]:
            values = [row.get(variable.name, np.nan) for row in rows]
            self._array(f"train/{variable.name}")[start:stop] = np.asarray(values)
        self._array("train/train_step")[start:stop] = np.asarray(
            [row["train_step"] for row in rows], np.int64
        )
        self._train_rows = stop

    def _require_held(self) -> None:
        if self.lock and self.lock.lost:
            raise RuntimeError("the store was closed, or opened anew by another recorder")

    def _arrays_along(self, dim: str) -> list[zarr.Array[Any]]:
        return [
            self._array(f"{group}/{variable.name}")
            for group, variables in self.layout.groups().items()
            for variable in variables
            if dim in variable.dims
        ]

    def _reserve(self, dim: str, rows: int, block: int) -> None:
        """Grow every array along `dim` ahead of writing; readers see the new sizes at once."""
        arrays = self._arrays_along(dim)
        if all(rows <= array.shape[0] for array in arrays):
            return
        size = -(-rows // block) * block
        for array in arrays:
            array.resize((max(size, array.shape[0]), *array.shape[1:]))
        consolidate(self._store)

    def _finish_growth(self) -> None:
        """Bring all arrays to one size after a kill in the middle of growing."""
        for dim in ("step", "train_step"):
            self._reserve(dim, max(a.shape[0] for a in self._arrays_along(dim)), 1)
        consolidate(self._store)

    def _committed(self, path: str) -> int:
        return int((np.asarray(self._array(path)[:]) != UNSET).sum())

    def _array(self, path: str) -> zarr.Array[Any]:
        return cast("zarr.Array[Any]", self._root[path])


def _lock(path: Path) -> FolderLock:
    return FolderLock(path, PATIENCE, take_over=True)


def _new_store(layout: Layout, attrs: Attributes) -> MemoryStore:
    store = MemoryStore()
    root = zarr.create_group(
        store, zarr_format=3, attributes=dict(attrs) | {"schema": SCHEMA}, overwrite=True
    )
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
    return store


def _create_array(group: zarr.Group, variable: Variable) -> zarr.Array[Any]:
    # checksums tell a damaged chunk from a surprising spectrum
    compressors: Any = ZstdCodec(checksum=True)
    if variable.shards:  # large: bits of a kind together save a third and most of the time
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


def _copy(new: MemoryStore, target: Store) -> None:
    """Copy a new store; its root, without which nobody takes it for a store, comes last."""
    copy_keys(new, target, lambda key: key != "zarr.json")
    copy_keys(new, target, lambda key: key == "zarr.json")


def copy_keys(new: MemoryStore, target: Store, wanted: Callable[[str], bool]) -> None:
    """Copy what lies under some keys."""

    async def copy(key: str) -> None:
        value = await new.get(key, default_buffer_prototype())
        assert value is not None
        await target.set(key, value)

    async def copy_all() -> None:
        copies = [copy(key) async for key in new.list() if wanted(key)]
        # none goes on in the background when another has failed
        for failure in await asyncio.gather(*copies, return_exceptions=True):
            if failure is not None:
                raise failure

    sync(copy_all())


def replace_attributes(store: Store, attrs: Attributes) -> None:
    """Change the root's attributes in one write, which leaves the other metadata as it is."""

    async def replace() -> None:
        found = await store.get("zarr.json", default_buffer_prototype())
        assert found is not None
        metadata = json.loads(found.to_bytes()) | {"attributes": dict(attrs)}
        content = default_buffer_prototype().buffer.from_bytes(json.dumps(metadata).encode())
        await store.set("zarr.json", content)

    sync(replace())


def consolidate(store: Store) -> None:
    """Write the metadata of all groups and arrays into the root's."""
    with warnings.catch_warnings():
        # written on purpose: without it, opening a store over a network reads every zarr.json
        warnings.filterwarnings("ignore", "Consolidated metadata", ZarrUserWarning)
        zarr.consolidate_metadata(store)


def _options(attrs: Attributes) -> dict[str, Any]:
    """What a recording must be gone on with, by what a user calls it."""
    named = {"probe_sha256": "probe batch", "schedule": "schedule", "sketch_seed": "seed"}
    options = {name: attrs[key] for key, name in named.items() if key in attrs}
    return options | dict(attrs.get("contents", {}))


def _require_same(location: Location, root: zarr.Group, layout: Layout, attrs: Attributes) -> None:
    was, now = _options(root.attrs), _options(attrs)
    for name in sorted(now | was):
        if was.get(name, False) != now.get(name, False):
            different = f"another {name}: {was.get(name)}, not {now.get(name)}"
            raise InputError(
                f"{location} was recorded with {different}; resume with the same options, or write "
                "to another store"
            )
    names = root.get("spectra/matrix")
    held = np.asarray(names[:]).tolist() if isinstance(names, zarr.Array) else []
    if held != layout.coordinate_values("spectra", "matrix"):
        raise InputError(f"{location} holds other matrices than this model: write to another store")
    for name, variables in layout.groups().items():
        for variable in variables:
            known = (layout.train_steps if name == "train" else layout.snapshots) is not None
            array = root.get(f"{name}/{variable.name}")
            shape = array.shape if isinstance(array, zarr.Array) else None
            wanted = variable.shape
            in_rows = variable.dims[0] in ("step", "train_step")
            # arrays are longer than announced where a run made more steps than it said
            long_enough = shape is not None and in_rows and (not known or shape[0] >= wanted[0])
            if shape is None or shape[1:] != wanted[1:] or not (long_enough or shape == wanted):
                raise InputError(
                    f"{location} has {name}/{variable.name} of {shape}, this run would write "
                    f"{wanted}: resume with the same model and schedule, or write to another store"
                )

"""Writing a store row by row, so that a reader never sees half a row and a kill costs none.

The order within a row is the layout's: every array, then the row's checksums, then the steps that
make the row exist. On a local disk, a file is on disk before the next write begins (`durable`);
elsewhere an object exists when the service says so.
"""

import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import zarr

from spectra.store.checked import CheckedStore
from spectra.store.creation import new_store
from spectra.store.durable import sync_folder
from spectra.store.files import DurableStore
from spectra.store.layout import BLOCK, TRAIN_CHUNK, Layout
from spectra.store.location import Location, check_schema, exists, local_path, zarr_store
from spectra.store.lock import FolderLock
from spectra.store.metadata import copy, publish, read_node, replace_attributes
from spectra.store.schema import UNSET
from spectra_data.errors import InputError
from spectra_data.partial import partial_folder, remove_leftovers

Attributes = Mapping[str, Any]
Rows = Sequence[Mapping[str, float]]
Arrays = Mapping[str, npt.NDArray[Any]]
PATIENCE = 10.0
"""Seconds to wait for the end of a process that holds the store: one that was just killed."""
STEPS = ("spectra/step", "train/train_step")
"""The arrays that make rows exist."""


class StoreWriter:
    """Appends snapshots and training steps to a store that it alone writes."""

    def __init__(self, location: Location, layout: Layout, lock: FolderLock | None) -> None:
        self.layout = layout
        self.lock = lock
        self._store = CheckedStore(zarr_store(location))
        self._root = zarr.open_group(self._store, mode="r+", use_consolidated=False)
        self._attrs = dict(self._root.attrs)
        self._snapshots = self._committed("spectra/step")
        self._train_rows = self._committed("train/train_step")

    @classmethod
    def create(cls, location: Location, layout: Layout, attrs: Attributes) -> Self:
        """Make a new store, empty but whole.

        A store on this machine that holds no row is replaced: its recording never began.

        Raises
        ------
        InputError
            When something is there already, or another process is writing to it.
        OSError
            When the location cannot be written.
        """
        if exists(location) and not _removed_as_empty(location):
            raise InputError(
                f"{location} exists already: resume it, remove it, or choose another name"
            )
        new = new_store(layout, attrs)
        path = local_path(location)
        if path is None:
            copy(new, zarr_store(location))
            return cls(location, layout, None)
        # the store gets its name once it is whole, so an interrupted creation leaves no partial one
        path = path.absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        with partial_folder(path) as partial:
            copy(new, DurableStore(partial))
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
        """Open a store to continue after training step `step`: later rows are unset first.

        Raises
        ------
        InputError
            When the store was made with another model, probe batch or configuration, or another
            process is writing to it.
        """
        check_schema(location)
        path = local_path(location)
        lock = _lock(path) if path else None
        try:
            if path:
                remove_leftovers(path, below=True)
            root = zarr.open_group(zarr_store(location), mode="r+", use_consolidated=False)
            _require_same(location, root, layout, attrs)
            writer = cls(location, layout, lock)
            writer._unset_after(step)
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
        """Release the store."""
        if self.lock:
            self.lock.release()

    def write_snapshot(self, step: int, arrays: Arrays) -> None:
        """Write one row, then announce it.

        Parameters
        ----------
        step
            Optimizer steps done; greater than that of the row before.
        arrays
            Arrays by path, e.g. ``spectra/weight``: (matrix, index). Those not given stay missing.
        """
        self._require_held()
        row = self._snapshots
        self._reserve("step", row + 1, BLOCK)
        for path, variable in self.layout.snapshot_arrays().items():
            # a row that an interrupted process left half written must not show through
            self._array(path)[row] = arrays.get(path, variable.fill)
        self._announce(step)

    def write_piece(self, path: str, members: slice, values: npt.NDArray[Any]) -> None:
        """Write some matrices of the row that is not announced yet."""
        self._require_held()
        self._reserve("step", self._snapshots + 1, BLOCK)
        self._array(path)[self._snapshots, members] = values

    def piece(self, path: str) -> npt.NDArray[Any]:
        """An array's row that is not announced yet, as far as it is written."""
        self._reserve("step", self._snapshots + 1, BLOCK)
        self._store.adopt(f"{path}/c/{self._snapshots}/")
        return np.asarray(self._array(path)[self._snapshots])

    def form(self, path: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Dtype and chunks of an array, which an older version may have chosen differently."""
        array = self._array(path)
        return np.dtype(array.dtype), array.chunks

    def announce(self, step: int) -> None:
        """Turn the row that was written in pieces into a snapshot."""
        self._require_held()
        self._announce(step)

    def describe(self, attrs: Attributes) -> None:
        """Set attributes of the store, in addition to those that it has."""
        self._require_held()
        self._attrs = self._attrs | dict(attrs)
        with self._store.transaction():
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
        with self._store.transaction():
            for variable in self.layout.groups()["train"][:-1]:
                values = [row.get(variable.name, np.nan) for row in rows]
                self._array(f"train/{variable.name}")[start:stop] = np.asarray(values)
            steps = np.array([row["train_step"] for row in rows], np.int64)
            for part in _chunks(self._array("train/train_step"), start, stop):
                self._array("train/train_step")[part] = steps[
                    part.start - start : part.stop - start
                ]
        self._train_rows = stop

    def _announce(self, step: int) -> None:
        """Record the checksums of the row that was written, then set its step."""
        self._store.record_row(self._snapshots, step, self.layout.snapshot_arrays())
        with self._store.transaction():
            for path in self.layout.step_arrays():
                self._array(path)[self._snapshots] = step
        self._snapshots += 1

    def _unset_after(self, step: int) -> None:
        """Unset every row of a later step."""
        with self._store.transaction():
            for path in (*reversed(self.layout.step_arrays()), "train/train_step"):
                array = self._array(path)
                steps = np.asarray(array[:])
                # last rows first: whenever this is interrupted, those that are set have no gap
                for part in reversed(_chunks(array, 0, len(steps))):
                    if (steps[part] > step).any():
                        array[part] = np.where(steps[part] > step, UNSET, steps[part])
        self._snapshots = self._committed("spectra/step")
        self._train_rows = self._committed("train/train_step")

    def _require_held(self) -> None:
        if self.lock and self.lock.lost:
            raise RuntimeError("the store was closed, or reopened by another recorder")

    def _paths_along(self, dim: str) -> list[str]:
        return [
            f"{group}/{variable.name}"
            for group, variables in self.layout.groups().items()
            for variable in variables
            if dim in variable.dims
        ]

    def _reserve(self, dim: str, rows: int, block: int) -> None:
        """Grow every array along `dim` ahead of writing; readers see the new sizes at once."""
        arrays = {path: self._array(path) for path in self._paths_along(dim)}
        if all(rows <= array.shape[0] for array in arrays.values()):
            return
        size = -(-rows // block) * block
        with self._store.transaction():
            for array in arrays.values():
                array.resize((max(size, array.shape[0]), *array.shape[1:]))
            self._publish(arrays)

    def _finish_growth(self) -> None:
        """Bring all arrays to one size after a kill in the middle of growing."""
        for dim in ("step", "train_step"):
            paths = self._paths_along(dim)
            self._reserve(dim, max(self._array(path).shape[0] for path in paths), 1)
            with self._store.transaction():
                self._publish(paths)

    def _publish(self, paths: Iterable[str]) -> None:
        publish(self._store, {path: read_node(self._store, path) for path in paths})

    def _committed(self, path: str) -> int:
        return int((np.asarray(self._array(path)[:]) != UNSET).sum())

    def _array(self, path: str) -> zarr.Array[Any]:
        return cast("zarr.Array[Any]", self._root[path])


def _chunks(array: zarr.Array[Any], start: int, stop: int) -> list[slice]:
    """Rows from `start` to `stop`, divided by chunk, since chunks are written in no fixed order."""
    size = array.chunks[0]
    edges = [start, *range((start // size + 1) * size, stop, size), stop]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _lock(path: Path) -> FolderLock:
    return FolderLock(path, PATIENCE, take_over=True)


def _removed_as_empty(location: Location) -> bool:
    """Remove a store if it has no row and is not a scan that was begun; return whether it was."""
    path = local_path(location)
    # elsewhere, nobody knows who is writing
    if path is None or path.is_symlink() or not _is_empty(path):
        return False
    lock = _lock(path)
    try:
        empty = _is_empty(path)
        if empty:
            shutil.rmtree(path)
        return empty
    finally:
        lock.release()


def _is_empty(path: Path) -> bool:
    try:
        check_schema(path)
        root = zarr.open_group(path, mode="r")
        steps = [np.asarray(cast("zarr.Array[Any]", root[name])[:]) for name in STEPS]
    except Exception:  # a broken store may raise anything: it is not known to be empty
        return False
    return "begun" not in root.attrs and all((held == UNSET).all() for held in steps)


def _options(attrs: Attributes) -> dict[str, Any]:
    """Options that a resumed recording must share, by the user's names for them."""
    named = {"probe_sha256": "probe batch", "schedule": "schedule", "sketch_seed": "seed"}
    options = {name: attrs[key] for key, name in named.items() if key in attrs}
    return options | dict(attrs.get("contents", {}))


def _difference(was: Any, now: Any) -> str:
    """What two options differ in, e.g. ``steps 8, not 12``."""
    if not (isinstance(was, Mapping) and isinstance(now, Mapping)):
        return f"{was}, not {now}"
    names = [name for name in dict.fromkeys([*was, *now]) if was.get(name) != now.get(name)]
    return ", ".join(f"{name} {was.get(name)}, not {now.get(name)}" for name in names)


def _require_same(location: Location, root: zarr.Group, layout: Layout, attrs: Attributes) -> None:
    was, now = _options(root.attrs), _options(attrs)
    for name in sorted(now | was):
        if was.get(name, False) != now.get(name, False):
            different = f"another {name}: {_difference(was.get(name), now.get(name))}"
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
            # arrays are longer if a run made more steps than it announced
            long_enough = shape is not None and in_rows and (not known or shape[0] >= wanted[0])
            if shape is None or shape[1:] != wanted[1:] or not (long_enough or shape == wanted):
                raise InputError(
                    f"{location} has {name}/{variable.name} of {shape}, this run would write "
                    f"{wanted}: resume with the same model and schedule, or write to another store"
                )

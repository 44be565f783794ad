"""Writing a store row by row, so that a reader never sees a half row and a kill costs none.

The order within a row is the schema's: every array, then the step that makes the row exist. Files
are on disk before the next write begins (`durable`).
"""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec
from zarr.errors import ZarrUserWarning

from data.errors import InputError
from spectra.store.durable import DurableStore, sync_folder
from spectra.store.schema import BLOCK, SCHEMA, TRAIN_CHUNK, UNSET, Layout

Attributes = Mapping[str, Any]
Rows = Sequence[Mapping[str, float]]


class StoreWriter:
    """Appends snapshots and training steps to a store that it alone writes."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self.layout = layout
        self._store = store
        self._root = zarr.open_group(store, mode="r+", use_consolidated=False)
        self._snapshots = self._committed("spectra", "step")
        self._train_rows = self._committed("train", "train_step")

    @classmethod
    def create(cls, path: Path, layout: Layout, attrs: Attributes) -> Self:
        """Make a new store, empty but whole.

        Raises
        ------
        InputError
            When something is there already.
        """
        if path.exists():
            raise InputError(f"{path} exists already: resume it, remove it, or choose another name")
        # the store gets its name once it is whole, so an interrupted creation leaves no half store
        partial = path.with_name(f".{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _create(DurableStore(partial), layout, attrs)
        partial.rename(path)
        sync_folder(path.parent)
        return cls(DurableStore(path), layout)

    @classmethod
    def resume(cls, path: Path, layout: Layout, attrs: Attributes, step: int) -> Self:
        """Open a store to go on after training step `step`: later rows are unset first.

        Raises
        ------
        InputError
            When the store was made by another model, probe batch or configuration.
        """
        from spectra.store.reader import check_schema

        check_schema(path)
        root = zarr.open_group(DurableStore(path), mode="r+", use_consolidated=False)
        _require_same(path, root, layout, attrs)
        for group, name in (("spectra", "step"), ("sketches", "step"), ("train", "train_step")):
            if group not in root:
                continue
            array = cast(zarr.Array[Any], root[f"{group}/{name}"])
            steps = np.asarray(array[:])
            if (steps > step).any():
                array[:] = np.where(steps > step, UNSET, steps)
        writer = cls(DurableStore(path), layout)
        writer._finish_growth()
        return writer

    @property
    def steps(self) -> list[int]:
        """Steps of the snapshots that exist."""
        committed = np.asarray(self._array("spectra/step")[: self._snapshots])
        return [int(step) for step in committed]

    def write_snapshot(self, step: int, arrays: Mapping[str, npt.NDArray[np.floating]]) -> None:
        """Write one row, then announce it.

        Parameters
        ----------
        step
            Optimizer steps done; greater than that of the row before.
        arrays
            By path, e.g. ``spectra/weight``: (matrix, index). What is not given stays NaN.
        """
        row = self._snapshots
        self._reserve(("spectra", "sketches"), "step", row + 1, BLOCK)
        for name in self._data_names():
            # a row that an interrupted process left half written must not show through
            values = arrays.get(name)
            array = self._array(name)
            array[row] = np.full(array.shape[1:], np.nan, np.float32) if values is None else values
        if self.layout.sketch:
            self._array("sketches/step")[row] = step
        self._array("spectra/step")[row] = step
        self._snapshots += 1

    def write_train_rows(self, rows: Rows) -> None:
        """Append training steps; every row holds ``train_step`` and any of the schema's metrics."""
        if not rows:
            return
        start, stop = self._train_rows, self._train_rows + len(rows)
        self._reserve(("train",), "train_step", stop, TRAIN_CHUNK)
        for variable in self.layout.groups()["train"][:-1]:
            values = [row.get(variable.name, np.nan) for row in rows]
            self._array(f"train/{variable.name}")[start:stop] = np.asarray(values)
        self._array("train/train_step")[start:stop] = np.asarray(
            [row["train_step"] for row in rows], np.int64
        )
        self._train_rows = stop

    def _data_names(self) -> list[str]:
        names = [f"spectra/{name}" for name in self.layout.spectra]
        return [*names, "sketches/gradient"] if self.layout.sketch else names

    def _reserve(self, groups: tuple[str, ...], dim: str, rows: int, block: int) -> None:
        """Grow every array along `dim` ahead of writing; readers see the new sizes at once."""
        arrays = [
            self._array(f"{group}/{variable.name}")
            for group in groups
            for variable in self.layout.groups().get(group, [])
            if dim in variable.dims
        ]
        if all(rows <= array.shape[0] for array in arrays):
            return
        size = -(-rows // block) * block
        for array in arrays:
            array.resize((max(size, array.shape[0]), *array.shape[1:]))
        _consolidate(self._store)

    def _finish_growth(self) -> None:
        """Bring all arrays to one size after a kill in the middle of growing."""
        for groups, dim in ((("spectra", "sketches"), "step"), (("train",), "train_step")):
            sizes = [
                self._array(f"{group}/{variable.name}").shape[0]
                for group in groups
                for variable in self.layout.groups().get(group, [])
                if dim in variable.dims
            ]
            self._reserve(groups, dim, max(sizes), 1)
        _consolidate(self._store)

    def _committed(self, group: str, dim: str) -> int:
        return int((np.asarray(self._array(f"{group}/{dim}")[:]) != UNSET).sum())

    def _array(self, path: str) -> zarr.Array[Any]:
        return cast("zarr.Array[Any]", self._root[path])


def _create(store: Store, layout: Layout, attrs: Attributes) -> None:
    root = zarr.create_group(
        store, zarr_format=3, attributes=dict(attrs) | {"schema": SCHEMA}, overwrite=True
    )
    for group_name, variables in layout.groups().items():
        coordinates = [v.name for v in variables if v.dims == ("matrix",) and v.name != "matrix"]
        group_attrs = {"coordinates": " ".join(coordinates)} if coordinates else {}
        group = root.create_group(group_name, attributes=group_attrs)
        for variable in variables:
            array = group.create_array(
                variable.name,
                shape=variable.shape,
                chunks=variable.chunks,
                dtype=variable.dtype,
                fill_value=variable.fill,
                # a checksum tells a damaged chunk from a surprising spectrum
                compressors=ZstdCodec(checksum=True),
                dimension_names=variable.dims,
                attributes=variable.attrs,
            )
            if variable.dims == ("matrix",):
                kind = object if variable.dtype == "string" else np.int64
                array[:] = np.asarray(layout.matrix_values(variable.name), dtype=kind)
    _consolidate(store)


def _consolidate(store: Store) -> None:
    with warnings.catch_warnings():
        # written on purpose: without it, opening a store over a network reads every zarr.json
        warnings.filterwarnings("ignore", "Consolidated metadata", ZarrUserWarning)
        zarr.consolidate_metadata(store)


def _require_same(path: Path, root: zarr.Group, layout: Layout, attrs: Attributes) -> None:
    for name in ("probe_sha256", "sketch"):
        if name in attrs and root.attrs.get(name) != attrs[name]:
            raise InputError(
                f"{path} was recorded with another {name}: resume with the same options, or write "
                "to another store"
            )
    for name, variables in layout.groups().items():
        for variable in variables:
            known = (layout.train_steps if name == "train" else layout.snapshots) is not None
            array = root.get(f"{name}/{variable.name}")
            shape = array.shape if isinstance(array, zarr.Array) else None
            wanted = variable.shape
            grows = variable.dims[0] in ("step", "train_step") and not known
            if shape is None or shape[1:] != wanted[1:] or (not grows and shape != wanted):
                raise InputError(
                    f"{path} has {name}/{variable.name} of {shape}, this run would write {wanted}: "
                    "resume with the same model and schedule, or write to another store"
                )
    names = np.asarray(cast("zarr.Array[Any]", root["spectra/matrix"])[:])
    if names.tolist() != layout.matrix_values("matrix"):
        raise InputError(f"{path} holds other matrices than this model: write to another store")

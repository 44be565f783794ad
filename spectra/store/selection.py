"""Selection of matrices by layer and role: ``weight.sel(layer=0, role="q")``.

xarray selects by one index for each dimension and call, and a matrix has three labels: its name,
its layer and its role. A custom index over layer and role would offer this, too, but arrays with it
can be neither reindexed nor aligned with arrays that lack some matrices, and `to_dataframe` leaves
its coordinates out. So what an opened store returns differs from xarray's own classes in `sel`
alone. What xarray makes of it in some functions (`apply_ufunc`, `merge`) is of its own classes
again.
"""

from collections.abc import Mapping
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

DIM = "matrix"
COORDINATES = ("layer", "role")


class _ByBlock:
    """A `sel` that takes layers, roles and matrices together."""

    __slots__ = ()

    def sel(
        self,
        indexers: Mapping[Any, Any] | None = None,
        method: str | None = None,
        tolerance: Any = None,
        drop: bool = False,
        **labels: Any,
    ) -> Self:
        """As xarray's `sel`; layers and roles are labels, lists or inclusive slices.

        The dimension matrix stays, unless scalars name one layer and one role, of a single matrix.

        Raises
        ------
        KeyError
            When there is no such matrix.
        """
        chosen, rest = _chosen(self, {**(indexers or {}), **labels})
        theirs: Any = super(_ByBlock, chosen)
        return cast(Self, theirs.sel(rest, method, tolerance, drop))


class MatrixArray(_ByBlock, xr.DataArray):  # type: ignore[no-untyped-call]
    """A DataArray whose matrices are selected by layer and role, see `_ByBlock.sel`."""

    __slots__ = ()


class MatrixDataset(_ByBlock, xr.Dataset):  # type: ignore[no-untyped-call]
    """A Dataset whose matrices are selected by layer and role, see `_ByBlock.sel`."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        return selectable(super().__getitem__(key))


class StoreTree(xr.DataTree):  # type: ignore[no-untyped-call]
    """A DataTree whose arrays and datasets are selected by layer and role; see `MatrixArray`."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        return selectable(super().__getitem__(key))

    def to_dataset(self, *options: Any, **keywords: Any) -> xr.Dataset:
        """As `xarray.DataTree.to_dataset`."""
        found: xr.Dataset = selectable(super().to_dataset(*options, **keywords))
        return found


def selectable(found: Any) -> Any:
    """An array or dataset of xarray's, as one that is selected by layer and role."""
    kinds = {xr.DataArray: MatrixArray, xr.Dataset: MatrixDataset}
    if type(found) in kinds and DIM in found.dims:
        found = found.copy(deep=False)
        found.__class__ = kinds[type(found)]  # they have the same slots
    return found


def _chosen(labelled: Any, labels: dict[Any, Any]) -> tuple[Any, dict[Any, Any]]:
    """What has the layers and roles among the labels, and the rest of the labels."""
    here = {
        name: labels.pop(name)
        for name in COORDINATES
        if name in labels and name in labelled.coords and labelled[name].dims == (DIM,)
    }
    if here:
        found = np.flatnonzero(
            np.logical_and.reduce([_at(labelled, n, v) for n, v in here.items()])
        )
        if not len(found):
            named = " and ".join(f"{name} {label!r}" for name, label in here.items())
            raise KeyError(f"no matrix has {named}")
        scalars = all(not isinstance(v, slice) and np.ndim(v) == 0 for v in here.values())
        alone = len(found) == 1 and scalars and len(here) == len(COORDINATES) and DIM not in labels
        labelled = labelled.isel({DIM: int(found[0]) if alone else found})
    return labelled, labels


def _at(labelled: Any, name: str, label: Any) -> npt.NDArray[np.bool_]:
    """Which matrices are at a label, or a list or a slice of labels: (matrix,)."""
    column = labelled[name].to_numpy()
    if isinstance(label, slice):
        if label.step is not None:
            raise ValueError(f"a slice of {name} has no step: name a list")
        low = label.start is None or column >= label.start
        high = label.stop is None or column <= label.stop
        return np.broadcast_to(np.logical_and(low, high), column.shape)
    wanted = np.atleast_1d(np.asarray(label)).tolist()
    if missing := [value for value in wanted if value not in column.tolist()]:
        raise KeyError(f"no matrix has {name} {missing[0]!r}")
    return np.isin(column, np.array(wanted, column.dtype))

"""Opening a store as an xarray.DataTree that holds only what was committed."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

from spectra.store.damage import unless_damaged
from spectra.store.files import RegularFiles
from spectra.store.location import Location, check_schema, local_path
from spectra.store.schema import UNSET
from spectra.store.selection import StoreTree, selectable

P = ParamSpec("P")
Result = TypeVar("Result")
Store = xr.DataTree | str | Path
"""A store, as `open_store` returns it, or its address."""


def open_store(store: str | Path, *, within: Path | None = None) -> xr.DataTree:
    """Open a run or a scan, lazily.

    Parameters
    ----------
    store
        Path of a ``.zarr`` store, or an fsspec URL of one.
    within
        Folder that no link in the store may lead out of, for a store that somebody else put there.

    Returns
    -------
    A tree with the groups ``spectra`` (step, matrix, index), ``train`` (train_step) and, where they
    were recorded, ``sketches`` (step, matrix, component), ``gradients/768x768`` and so on by shape
    (step, matrix, row, col) in float32, and ``subspaces`` (step, matrix, row or col, component).
    The dimension ``matrix`` has the coordinates layer, role, rows and cols. Rows that were not
    committed are left out; arrays are dask arrays.

    Raises
    ------
    InputError
        When there is no store, or one of another schema.

    Examples
    --------
    >>> run = spectra.open("runs/demo/spectra.zarr")  # doctest: +SKIP
    >>> run["spectra"].weight.sel(matrix="model.layers.0.self_attn.q_proj")  # doctest: +SKIP
    >>> run["spectra"].weight.sel(layer=0, role="q", step=500)  # doctest: +SKIP
    """
    check_schema(store)
    with unless_damaged(store):
        return _opened(store, within)


def _opened(store: str | Path, within: Path | None) -> xr.DataTree:
    tree = xr.open_datatree(files_of(store, within), engine="zarr", chunks={})
    # committed steps are read once, so that groups agree while a writer continues
    steps = tree["spectra"]["step"].to_numpy()
    rows = np.flatnonzero(steps != UNSET)
    groups = {}
    for name, node in tree.subtree_with_keys:
        dataset = node.to_dataset(inherit=False)
        matrix_coordinates = [n for n, c in dataset.coords.items() if c.dims == ("matrix",)]
        dataset = dataset.assign_coords(dataset[matrix_coordinates].compute().coords)
        if "step" in dataset.dims:
            dataset = dataset.isel(step=rows)
            if "step" in dataset.coords:
                dataset = dataset.assign_coords(step=dataset["step"].copy(data=steps[rows]))
        if "train_step" in dataset.dims:
            committed = np.flatnonzero(dataset["train_step"].to_numpy() != UNSET)
            dataset = dataset.isel(train_step=committed)
        if name.startswith("gradients/"):
            dataset["gradient"] = _widened(dataset["gradient"])
        groups[name] = dataset
    found = StoreTree.from_dict(groups)
    path = local_path(store)
    found.encoding = {"source": str(store if path is None else path.absolute()), "within": within}
    return found


def files_of(store: Location, within: Path | None = None) -> Any:
    """The files of a store, as xarray accepts them; for `within`, see `open_store`."""
    path = local_path(store)
    if path is None:
        return str(store)
    return RegularFiles(path.absolute(), read_only=True, within=within)


def takes_store(
    function: Callable[Concatenate[xr.DataTree, P], Result],
) -> Callable[Concatenate[Store, P], Result]:
    """Let a function of an opened store take a store's address as well.

    The array or dataset that it returns is selected by layer and role, like the store.

    Raises
    ------
    InputError
        When there is no store at the address, or it is damaged.
    TypeError
        When neither a store nor an address is given.
    """
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def of_either(*arguments: Any, **keywords: Any) -> Result:
        if not arguments and first in keywords:
            arguments = (keywords.pop(first),)
        if not arguments or isinstance(arguments[0], xr.DataTree):
            return cast(Result, selectable(function(*arguments, **keywords)))
        store, *others = arguments
        if not isinstance(store, str | Path):
            raise TypeError(
                f"{function.__name__} takes a store, as spectra.open returns it, or its address, "
                f"not a {type(store).__name__}"
            )
        run = open_store(store)
        with unless_damaged(store):
            return cast(Result, selectable(function(run, *others, **keywords)))

    return cast(Callable[Concatenate[Store, P], Result], of_either)


def _widened(bits: xr.DataArray) -> xr.DataArray:
    """The float32 values of an array of bfloat16 bits, lazily."""
    values = xr.apply_ufunc(
        from_bfloat16_bits, bits, dask="parallelized", output_dtypes=[np.float32], keep_attrs=True
    )
    return cast(xr.DataArray, values)


def from_bfloat16_bits(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The float32 values whose upper half bfloat16 bits are."""
    return (bits.astype(np.uint32) << 16).view(np.float32)

"""Opening a store as an xarray.DataTree that holds only what was committed."""

import json
from pathlib import Path

import numpy as np
import xarray as xr

from data.errors import InputError
from spectra.store.schema import SCHEMA, UNSET

ROW_DIMENSIONS = ("step", "train_step")


def open_store(store: str | Path) -> xr.DataTree:
    """Open a run or a scan, lazily.

    Parameters
    ----------
    store
        Path of a ``.zarr`` store, or an fsspec URL of one.

    Returns
    -------
    A tree with the groups ``spectra`` (step, matrix, index), ``train`` (train_step) and, where they
    were recorded, ``sketches`` (step, matrix, component). The dimension ``matrix`` has the
    coordinates layer, role, rows and cols. Rows that were not committed are left out; arrays are
    dask arrays.

    Raises
    ------
    InputError
        When there is no store, or one of another schema.

    Examples
    --------
    >>> run = spectra.open("runs/demo/spectra.zarr")  # doctest: +SKIP
    >>> run["spectra"].weight.sel(matrix="model.layers.0.self_attn.q_proj")  # doctest: +SKIP
    """
    check_schema(store)
    tree = xr.open_datatree(str(store), engine="zarr", chunks={})
    groups = {}
    for path, node in tree.subtree_with_keys:
        dataset = node.to_dataset(inherit=False)
        matrix_coordinates = [name for name, c in dataset.coords.items() if c.dims == ("matrix",)]
        dataset = dataset.assign_coords({n: dataset[n].compute() for n in matrix_coordinates})
        for dim in ROW_DIMENSIONS:
            if dim in dataset.dims:
                dataset = dataset.isel({dim: np.flatnonzero(dataset[dim].values != UNSET)})
        groups[path] = dataset
    if "sketches" in groups:
        # a row exists only when the snapshot does; both may gain one between the two readings
        both = np.intersect1d(groups["spectra"]["step"], groups["sketches"]["step"])
        groups["sketches"] = groups["sketches"].sel(step=both)
    return xr.DataTree.from_dict(groups)


def check_schema(store: str | Path) -> None:
    """Require a store of this schema.

    Raises
    ------
    InputError
        With one line that tells apart: nothing there, a folder that is no store, an unknown schema.
    """
    if "://" in str(store):
        try:
            schema = xr.open_datatree(str(store), engine="zarr", chunks=None).attrs.get("schema")
        except Exception as error:  # of fsspec, its backend, or the network
            raise InputError(f"cannot open {store}: {error}") from error
    else:
        path = Path(store)
        if not path.exists():
            raise InputError(f"no store at {path}")
        try:
            attrs = json.loads((path / "zarr.json").read_text())["attributes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            inner = next(iter(sorted(path.glob("*.zarr"))), None) if path.is_dir() else None
            hint = f" (did you mean {inner}?)" if inner else ""
            raise InputError(
                f"{path} is no zarr store: it has no readable zarr.json{hint}"
            ) from error
        schema = attrs.get("schema")
    if schema != SCHEMA:
        described = "no schema" if schema is None else f"the schema {schema!r}"
        raise InputError(f"{store} has {described}; this version reads {SCHEMA!r}")

"""Raw gradients as they lie in the store: read once, a matrix over all snapshots at a time."""

import sys
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import dask.system
import numpy as np
import numpy.typing as npt
import xarray as xr

from data.errors import InputError
from spectra.analysis.stored import unread
from spectra.metrics.products import inner_products

MEMORY = 1 << 30
"""Bytes that the gradients being worked on may take, on one machine."""
COPIES = 2
"""Of a block of gradients while it is read: as stored, and decoded."""


def raw_gradients(run: xr.DataTree) -> Iterator[xr.DataArray]:
    """The recorded gradients by shape, each (step, matrix, row, col), not yet read or chunked.

    Raises
    ------
    InputError
        When the run holds no raw gradients.
    """
    if "gradients" not in run.children:
        raise InputError(
            "this store holds no raw gradients: record with `gradients=True` (--record-gradients)"
        )
    for shape in run["gradients"].children:
        yield unread(run, f"gradients/{shape}/gradient")


def gradient_products(run: xr.DataTree, memory: int = MEMORY) -> xr.DataArray:
    r"""Inner products of every matrix' gradients at all pairs of snapshots, lazily.

    Parameters
    ----------
    run
        An opened store with raw gradients.
    memory
        Bytes that the gradients being worked on may take, on one machine: blocks of rows are cut so
        that as many as are worked on at a time fit.

    Returns
    -------
    (matrix, step, step\_) in float64, in the order of the run's matrices. Every stored byte is read
    once. Computed by dask: by the threads of this process, or by a `dask.distributed` cluster if a
    client is there.
    """
    parts = [_products(gradients, memory) for gradients in raw_gradients(run)]
    products = xr.concat(parts, dim="matrix", coords="minimal", compat="override")
    order = [n for n in run["spectra"]["matrix"].to_numpy().tolist() if n in products["matrix"]]
    return products.sel(matrix=order)


def _products(gradients: xr.DataArray, memory: int) -> xr.DataArray:
    blocks = row_blocks(gradients, memory)
    data = blocks.data
    count = data.shape[0]
    products = da.map_blocks(
        _block_products,
        data,
        dtype=np.float64,
        chunks=((count,), data.chunks[1], (1,) * len(data.chunks[2]), (count,)),
        meta=np.empty((0, 0, 0, 0)),
    )
    steps = blocks["step"].to_numpy()
    labelled = xr.DataArray(
        products.sum(axis=2).transpose(1, 0, 2),
        dims=("matrix", "step", "step_"),
        coords={n: c for n, c in blocks.coords.items() if c.dims == ("matrix",)},
    )
    return labelled.assign_coords(step=steps, step_=steps)


def row_blocks(gradients: xr.DataArray, memory: int, *, whole: bool = False) -> xr.DataArray:
    """Cut gradients into dask blocks: all steps of some rows of a matrix, or of `whole` matrices.

    As many matrices as fit: a file that holds several is then opened once for all of them.

    Raises
    ------
    InputError
        When not even the smallest block that is stored in one piece fits.
    """
    rows, cols = gradients.sizes["row"], gradients.sizes["col"]
    piece = rows
    if not whole and (chunks := gradients.encoding.get("chunks")):
        piece = chunks[gradients.dims.index("row")]
    width = 2 if gradients.dtype == np.uint16 else 4
    row_bytes = gradients.sizes["step"] * cols * width * COPIES * threads()
    if row_bytes * piece > memory:
        raise InputError(
            f"the gradients of {gradients.sizes['step']} snapshots need "
            f"{row_bytes * piece / 1e6:,.0f} MB at a time, more than the {memory / 1e6:,.0f} MB "
            "allowed: raise `memory`, or choose fewer snapshots"
        )
    block = min(rows, max(1, memory // row_bytes // piece) * piece)
    together = max(1, memory // (row_bytes * rows)) if block == rows else 1
    return gradients.chunk({"step": -1, "matrix": together, "row": block, "col": -1})


def threads() -> int:
    """Blocks that one machine works on at a time, under the scheduler that would compute now."""
    if "distributed" in sys.modules:
        from distributed import get_client

        try:
            workers = get_client().scheduler_info(n_workers=-1)["workers"].values()
            hosts: dict[str, int] = {}
            for worker in workers:
                hosts[worker["host"]] = hosts.get(worker["host"], 0) + worker["nthreads"]
            return max(hosts.values(), default=1)
        except ValueError:  # no client
            pass
    return int(dask.config.get("num_workers", None) or dask.system.CPU_COUNT)


def _block_products(block: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(step, matrix, row, col) to (step, matrix, 1, step)."""
    count = block.shape[0]
    products = [inner_products(block[:, i].reshape(count, -1)) for i in range(block.shape[1])]
    return np.stack(products, axis=1)[:, :, None, :]

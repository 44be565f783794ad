"""Raw gradients from the store: read once, a few matrices over all snapshots at a time.

Most of the time goes into decoding, and into memory touched for the first time. So gradients are
read into buffers that are used again, in portions that the allocator keeps.
"""

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import dask
import dask.array as da
import dask.system
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from spectra.analysis.stored import unread
from spectra.machine.cores import one_blas_thread
from spectra.metrics.products import inner_products
from spectra_data.errors import InputError

MEMORY = 1 << 30
"""Bytes that the gradients in work may use, on one machine."""
BLOCK_BYTES = 1 << 27
"""Bytes of a block; larger blocks gain nothing."""
PORTION_BYTES = 1 << 24
"""Bytes read at a time; fewer than the C library's allocator returns to the system."""


class Buffers:
    """Arrays to use again, for as long as the work that reads into them exists."""

    def __init__(self) -> None:
        self._free: deque[npt.NDArray[Any]] = deque()

    @contextmanager
    def borrowed(self, shape: tuple[int, ...], dtype: Any) -> Iterator[npt.NDArray[Any]]:
        """Lend an array of a shape, with undefined contents."""
        needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if memory.nbytes < needed:
            memory = np.empty(needed, np.uint8)
        try:
            yield memory[:needed].view(dtype).reshape(shape)
        finally:
            self._free.append(memory)

    def __reduce__(self) -> tuple[type["Buffers"], tuple[()]]:
        return Buffers, ()  # another process makes its own


def raw_gradients(run: xr.DataTree) -> Iterator[xr.DataArray]:
    """Recorded gradients by shape, each (step, matrix, row, col), not yet read or chunked.

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
    r"""Inner products of every matrix's gradients at all pairs of snapshots, lazily.

    Parameters
    ----------
    run
        An opened store with raw gradients.
    memory
        Bytes that the gradients in work may use, on one machine. Blocks are cut so that all those
        in work at a time fit.

    Returns
    -------
    (matrix, step, step\_) in float64, in the order of the run's matrices. Every stored gradient is
    read once. Dask computes them: in the threads of this process, or on a `dask.distributed`
    cluster if there is a client.

    Raises
    ------
    InputError
        When not even the smallest block fits.
    """
    parts = [_products(gradients, memory) for gradients in raw_gradients(run)]
    return in_order(parts, run)


def in_order(parts: list[xr.DataArray], run: xr.DataTree) -> xr.DataArray:
    """Join the results of all shapes, in the order of the run's matrices."""
    together = xr.concat(parts, dim="matrix", coords="minimal", compat="override")
    held = set(together["matrix"].to_numpy().tolist())
    names = np.atleast_1d(run["spectra"]["matrix"].to_numpy()).tolist()
    return together.sel(matrix=[name for name in names if name in held])


def labelled(products: Any, gradients: xr.DataArray) -> xr.DataArray:
    """Products (matrix, step, step_) with the coordinates of their gradients."""
    coords = {name: c for name, c in gradients.coords.items() if c.dims == ("matrix",)}
    steps = gradients["step"].to_numpy()
    array = xr.DataArray(products, dims=("matrix", "step", "step_"), coords=coords)
    return array.assign_coords(step=steps, step_=steps)


def matrix_blocks(
    gradients: xr.DataArray, memory: int, *, whole: bool = False
) -> list[tuple[slice, list[slice]]]:
    """Cut gradients into blocks over all steps: slices of matrices, each with its slices of rows.

    Parameters
    ----------
    gradients
        (step, matrix, row, col).
    memory
        Bytes for all blocks in work at a time.
    whole
        Whether to keep the rows of a matrix together.

    Raises
    ------
    InputError
        When not even the smallest block fits: one stored chunk high, or a `whole` matrix.
    """
    steps, matrices, rows, cols = (gradients.sizes[d] for d in ("step", "matrix", "row", "col"))
    chunks = gradients.encoding.get("chunks")
    height = chunks[gradients.dims.index("row")] if chunks and not whole else rows
    row_bytes = steps * cols * gradients.dtype.itemsize
    each = memory // threads()
    if row_bytes * height > each:
        raise InputError(
            f"the gradients of {steps} snapshots need {row_bytes * height * threads() / 1e6:,.0f} "
            f"MB at a time, more than the {memory / 1e6:,.0f} MB allowed: raise `memory`, or "
            "choose fewer snapshots"
        )
    wanted = max(row_bytes * height, min(each, BLOCK_BYTES))
    tall = min(rows, wanted // row_bytes // height * height)
    together = max(1, wanted // (row_bytes * rows)) if tall == rows else 1
    cuts = [slice(row, min(row + tall, rows)) for row in range(0, rows, tall)]
    return [
        (slice(first, min(first + together, matrices)), cuts)
        for first in range(0, matrices, together)
    ]


def threads() -> int:
    """Blocks that one machine works on at a time, under the current scheduler."""
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


@contextmanager
def read_block(
    gradients: xr.DataArray, matrices: slice, rows: slice, buffers: Buffers
) -> Iterator[npt.NDArray[Any]]:
    """Read a block (matrix, step, row, col) into a buffer, a few steps at a time."""
    block = gradients[:, matrices, rows]
    steps, count, height, cols = block.shape
    portion = max(1, PORTION_BYTES // max(1, count * height * cols * block.dtype.itemsize))
    with buffers.borrowed((count, steps, height, cols), block.dtype) as buffer:
        for start in range(0, steps, portion):
            part = block[start : start + portion].to_numpy()
            buffer[:, start : start + portion] = part.swapaxes(0, 1)
        yield buffer


def _products(gradients: xr.DataArray, memory: int) -> xr.DataArray:
    steps, buffers = gradients.sizes["step"], Buffers()
    # the array is bound, not an argument: dask would look into it
    of_block = delayed(partial(_block_products, gradients, buffers), pure=False)
    groups = []
    for matrices, cuts in matrix_blocks(gradients, memory):
        shape = (matrices.stop - matrices.start, steps, steps)
        blocks = [
            da.from_delayed(of_block(matrices, rows), shape, dtype=np.float64) for rows in cuts
        ]
        groups.append(sum(blocks[1:], start=blocks[0]))
    return labelled(da.concatenate(groups), gradients)


def _block_products(
    gradients: xr.DataArray, buffers: Buffers, matrices: slice, rows: slice
) -> npt.NDArray[np.float64]:
    """Inner products (matrix, step, step) over some rows."""
    with read_block(gradients, matrices, rows, buffers) as block, one_blas_thread:
        # one thread per block is enough
        return np.stack([inner_products(of_one.reshape(len(of_one), -1)) for of_one in block])

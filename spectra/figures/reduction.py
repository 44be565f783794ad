"""Less than was recorded: blocks shown by their largest value, so that spikes survive; float32."""

from typing import Any

import numpy as np
import numpy.typing as npt

from spectra.store.schema import out_of_range


def block_size(count: int, most: int) -> int:
    """The least power of two that leaves at most so many blocks of so many rows."""
    size = 1
    while -(-count // size) > most:
        size *= 2
    return size


def reduced(values: npt.NDArray[Any], size: int, axis: int = 0) -> npt.NDArray[Any]:
    """Along an axis, every block of `size` by its value of the largest magnitude, with its sign.

    NaN counts only where there is nothing else. The last block may be shorter.
    """
    if size == 1:
        return values
    moved = np.moveaxis(values, axis, -1)
    missing = -moved.shape[-1] % size
    filled = np.concatenate([moved, np.full((*moved.shape[:-1], missing), np.nan)], axis=-1)
    blocks = filled.reshape(*moved.shape[:-1], -1, size)
    magnitude = np.where(np.isnan(blocks), -1.0, np.abs(blocks))
    chosen = np.take_along_axis(blocks, magnitude.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    return np.moveaxis(chosen, -1, axis).astype(values.dtype, copy=False)


def shortened(values: npt.NDArray[Any]) -> npt.NDArray[np.floating]:
    """In float32, half the bytes of a figure, where that holds all of them; else in float64."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)], dtype=np.float64)
    ends = (float(sizes.min()), float(sizes.max())) if sizes.size else ()
    extreme = any(out_of_range(end, np.float32) for end in ends)
    return np.asarray(values, np.float64 if extreme else np.float32)

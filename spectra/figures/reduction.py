"""Fewer cells than were recorded: blocks shown by their largest value, so that spikes survive."""

from typing import Any

import numpy as np
import numpy.typing as npt


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

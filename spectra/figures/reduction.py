"""Reduction of data for figures: each block by its largest value, so spikes survive; float32."""

from typing import Any

import numpy as np
import numpy.typing as npt

from spectra.store.schema import out_of_range


def block_size(count: int, most: int) -> int:
    """Least power of two, in rows, that cuts `count` rows into at most `most` blocks."""
    size = 1
    while -(-count // size) > most:
        size *= 2
    return size


def reduced(values: npt.NDArray[Any], size: int, axis: int = 0) -> npt.NDArray[Any]:
    """Reduce every block of `size` along an axis to its value of largest magnitude, with its sign.

    A block is NaN only if all of its values are. The last block may be shorter.
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
    """Values in float32 (half the bytes of a figure) if it holds all of them; else in float64."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)], dtype=np.float64)
    ends = (float(sizes.min()), float(sizes.max())) if sizes.size else ()
    extreme = any(out_of_range(end, np.float32) for end in ends)
    return np.asarray(values, np.float64 if extreme else np.float32)

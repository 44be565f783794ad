"""Inner products of long vectors, a cache's worth at a time."""

from typing import Any

import numpy as np
import numpy.typing as npt

from spectra.metrics.spectrum import Floats

WIDTH = 1 << 14
"""Components at a time: fifty float32 vectors of this length fit in a core's second-level cache."""
SAFE = 2.0**40
"""Largest entries above this or below its inverse could leave float32's range when squared."""


def inner_products(vectors: npt.NDArray[Any]) -> Floats:
    r"""All inner products of vectors :math:`\langle x_i, x_j\rangle`, in float64.

    Parameters
    ----------
    vectors
        (n, components): float32 or float64, or the bits of bfloat16 as uint16.

    Returns
    -------
    (n, n). Blocks of 16 384 components are multiplied in float32 and summed in float64: relative
    error about 1e-6 of the norms, as for float32 input. Float64 is multiplied in float64. NaN in
    the rows and columns of vectors that hold a NaN or an infinity.
    """
    n, components = vectors.shape
    total = np.zeros((n, n))
    working = np.float64 if vectors.dtype == np.float64 else np.float32
    scales = _scales(vectors)
    broken = ~np.isfinite(scales)
    buffer = np.empty((n, min(WIDTH, components)), working)
    for start in range(0, components, WIDTH):
        part = vectors[:, start : start + WIDTH]
        block = buffer[:, : part.shape[1]]
        if part.dtype == np.uint16:
            np.left_shift(part, 16, out=block.view(np.uint32), dtype=np.uint32)
        else:
            block[...] = part
        if (scales != 1).any():
            block[broken] = 0
            block *= np.where(broken, 1.0, scales).astype(working)[:, None]
        total += block @ block.T
    total /= np.where(broken, np.nan, scales)[:, None] * np.where(broken, np.nan, scales)[None]
    return total


def _scales(vectors: npt.NDArray[Any]) -> Floats:
    """Power of two that brings each vector into a safe range; NaN if the vector is not finite."""
    if vectors.dtype == np.uint16:
        bits = np.bitwise_and(vectors, 0x7FFF).max(axis=1, initial=0).astype(np.uint32) << 16
        largest = bits.view(np.float32).astype(np.float64)
    else:
        largest = np.abs(vectors).max(axis=1, initial=0).astype(np.float64)
    finite = np.isfinite(largest)
    extreme = finite & (largest > 0) & ((largest > SAFE) | (largest < 1 / SAFE))
    _, exponent = np.frexp(np.where(finite, largest, 1.0))
    scales = np.where(extreme, np.ldexp(1.0, -exponent), 1.0)
    # vectors under 2^-120 lose digits to their own format; a larger factor would overflow
    return np.where(finite, np.minimum(scales, 2.0**120), np.nan)

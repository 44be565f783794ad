"""How closely gradients of different steps point the same way."""

from typing import Any

import numpy as np
import numpy.typing as npt


def cosine_similarity(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    r"""Cosine of every pair of vectors, :math:`\langle x,y\rangle/(\|x\|\|y\|)`.

    Parameters
    ----------
    vectors
        (..., n, components); any scale, since each vector is divided by its largest entry first.

    Returns
    -------
    (..., n, n), in [-1, 1]; the diagonal is exactly 1. NaN in the rows and columns of a vector that
    is zero or holds a NaN.
    """
    x = np.asarray(vectors, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = x / np.abs(x).max(axis=-1, keepdims=True)
        x = x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
    cosine: npt.NDArray[np.float64] = np.clip(x @ x.swapaxes(-2, -1), -1.0, 1.0)
    # a NaN vector must not spread through the matrix product's kernels
    missing = np.isnan(x).any(axis=-1)
    cosine[missing[..., :, None] | missing[..., None, :]] = np.nan
    diagonal = np.arange(x.shape[-2])
    cosine[..., diagonal, diagonal] = np.where(missing, np.nan, 1.0)
    return cosine


def sketched_cosine_error(
    cosine: npt.NDArray[np.float64] | float, components: int
) -> npt.NDArray[np.float64]:
    r"""Standard error of a cosine computed from two sketches, :math:`(1-c^2)/\sqrt d`.

    By the delta method for the ratio of a sketched inner product to sketched norms, as for a sample
    correlation (Li, Hastie and Church, KDD 2006).

    Parameters
    ----------
    cosine
        The cosine, of any shape.
    components
        Length of a sketch, :math:`d`.

    Returns
    -------
    In the shape of `cosine`; 0 where the cosine is 1, at most :math:`1/\sqrt d`.
    """
    return np.asarray((1.0 - np.square(cosine)) / np.sqrt(components), np.float64)

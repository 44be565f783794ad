r"""Norms and ranks of a spectrum: how many directions a matrix uses.

With singular values :math:`s`, eigenvalues :math:`\lambda = s^2` and :math:`p =
\lambda/\sum\lambda`. Norms grow with the matrix; nothing else depends on its scale.

A zero matrix has norms and ranks 0 and no entropy (NaN); a matrix of rank one has ranks 1 and
entropy 0; if a spectrum is missing, everything is NaN.
"""

from typing import Any

import numpy as np

from spectra.metrics.spectrum import Floats, Side, count, cutoff, largest, relative


def spectral_norm(spectra: Any) -> Floats:
    r"""Largest singular value :math:`s_1`, of spectra (..., index)."""
    return largest(spectra)


def frobenius_norm(spectra: Any) -> Floats:
    r"""Root of the sum of squares, :math:`\sqrt{\sum s^2}`, of spectra (..., index)."""
    return np.asarray(largest(spectra) * np.sqrt(np.square(relative(spectra)).sum(axis=-1)))


def nuclear_norm(spectra: Any) -> Floats:
    r"""Sum of the singular values, :math:`\sum s`, of spectra (..., index)."""
    return np.asarray(largest(spectra) * relative(spectra).sum(axis=-1))


def stable_rank(spectra: Any) -> Floats:
    r""":math:`\sum\lambda/\lambda_{max}`, in [1, m] (Rudelson and Vershynin 2007)."""
    return np.asarray(np.square(relative(spectra)).sum(axis=-1))


def effective_rank(spectra: Any) -> Floats:
    r""":math:`\exp H(s/\sum s)`, H the entropy, in [1, m] (Roy and Vetterli 2007)."""
    r = relative(spectra)
    total = r.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        entropy = _entropy(r / total[..., None])
    return np.where(total > 0, np.exp(entropy), np.where(np.isnan(total), np.nan, 0.0))


def participation_ratio(spectra: Any) -> Floats:
    r""":math:`(\sum\lambda)^2/\sum\lambda^2`, in [1, m] (Bell and Dean 1970)."""
    squares = np.square(relative(spectra))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.square(squares.sum(axis=-1)) / np.square(squares).sum(axis=-1)
    return np.where(squares.sum(axis=-1) == 0, 0.0, ratio)


def energy_rank(spectra: Any, share: float) -> Floats:
    r"""Least r with :math:`\sum_{i\le r}\lambda_i \ge` `share` :math:`\cdot\sum\lambda`.

    Parameters
    ----------
    spectra
        (..., index), descending.
    share
        Share of the energy :math:`\sum\lambda`, in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share of the energy must be in (0, 1], not {share}")
    energy = np.cumsum(np.square(relative(spectra)), axis=-1)
    total = energy[..., -1:] if energy.shape[-1] else np.full((*energy.shape[:-1], 1), np.nan)
    # sums of equal terms differ in their last bits
    below = (energy < share * total * (1 - 1e-14)).sum(axis=-1)
    rank = np.where(total[..., 0] > 0, below + 1.0, 0.0)
    return np.where(np.isnan(total[..., 0]), np.nan, rank)


def numerical_rank(spectra: Any, rows: Side, cols: Side) -> Floats:
    r"""Values above max(rows, cols) · 2⁻²³ · :math:`s_1`: `numpy.linalg.matrix_rank` in float32.

    Parameters
    ----------
    spectra
        (..., index), descending.
    rows, cols
        Sides of the matrices, in the shape of the leading axes or to broadcast against it.
    """
    r = relative(spectra)
    with np.errstate(invalid="ignore"):
        rank = (r > cutoff(rows, cols)[..., None]).sum(axis=-1).astype(np.float64)
    return np.where(np.isnan(largest(spectra)), np.nan, rank)


def spectral_entropy(spectra: Any) -> Floats:
    r""":math:`-\sum p\ln p/\ln m`, in [0, 1], m the number of singular values.

    1 if all of them are equal, 0 if only one is not zero (Alter, Brown and Botstein 2000).
    """
    squares = np.square(relative(spectra))
    total = squares.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        entropy = _entropy(squares / total[..., None]) / np.log(np.maximum(count(spectra), 2))
    return np.where(total > 0, np.maximum(entropy, 0.0), np.nan)


def rank_one_residual(spectra: Any) -> Floats:
    r"""Share of the energy outside the leading direction, :math:`1-\lambda_1/\sum\lambda`.

    In [0, 1): the relative squared error of the best rank-one approximation (Eckart and Young).
    """
    squares = np.square(relative(spectra))
    total = squares.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, squares[..., 1:].sum(axis=-1) / total, np.nan)


def threshold_reduction(spectra: Any, count: Any, threshold: float) -> Floats:
    r"""Share of a matrix's ranks that WeLore's threshold removes.

    The share of :math:`(\sigma_i - \sigma_{min}) / (\sigma_1 - \sigma_{min})` under the threshold;
    0 if all values are equal. Source: Jaiswal et al. 2024, section 3.

    Parameters
    ----------
    spectra
        Singular values (..., index), descending, padded with NaN.
    count
        Number of singular values of a matrix, broadcast against the other axes.
    threshold
        From 0 to 1.
    """
    r = relative(spectra)
    count = np.asarray(count)
    there = np.arange(r.shape[-1]) < count[..., None]
    least = np.where(there, r, np.inf).min(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        normalised = np.where(least < r[..., :1], (r - least) / (r[..., :1] - least), 1.0)
        removed = ((normalised < threshold) & there).sum(axis=-1) / count
    return np.where(np.isnan(r[..., 0]), np.nan, removed)


def _entropy(p: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p), np.where(np.isnan(p), np.nan, 0.0))
    return np.asarray(-terms.sum(axis=-1))

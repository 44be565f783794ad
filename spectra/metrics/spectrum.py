"""Base of all measures of spectra: values without their scale, and which of them count.

A spectrum is the last axis of an array: singular values, descending, padded with NaN. Measures
accept any number of leading axes, and torch tensors (on any device) as well as numpy arrays; they
compute in float64 and return numpy arrays without the last axis.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Side = int | npt.NDArray[Any]

ROUNDING = float(np.finfo(np.float32).eps)
"""Relative spacing of float32, in which weights and gradients are kept."""


def as_floats(values: Any) -> Floats:
    """A torch tensor, or anything that numpy converts, as float64."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()
    return np.asarray(values, np.float64)


def largest(spectra: Any) -> Floats:
    """Largest value of every spectrum; NaN if the spectrum is empty or holds an infinity."""
    s = as_floats(spectra)
    if s.shape[-1] == 0:
        return np.full(s.shape[:-1], np.nan)
    top = np.fmax.reduce(s, axis=-1)
    return np.asarray(np.where(np.isfinite(top), top, np.nan))


def relative(spectra: Any) -> Floats:
    """Spectra over their largest value: 0 for padding and for zero matrices, NaN where missing."""
    s = as_floats(spectra)
    top = largest(s)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.where(top > 0, np.where(np.isnan(s), 0.0, s) / top, 0.0)
    return np.where(np.isnan(top), np.nan, scaled)


def count(spectra: Any) -> npt.NDArray[np.int64]:
    """Number of singular values of each spectrum, without its padding."""
    return np.asarray((~np.isnan(as_floats(spectra))).sum(axis=-1))


def cutoff(rows: Side, cols: Side) -> Floats:
    r"""Relative size below which a singular value is rounding, max(rows, cols) · 2⁻²³.

    The tolerance of `numpy.linalg.matrix_rank` for float32 (Press et al., Numerical Recipes,
    section 2.6); relative to the largest value, so that scale changes nothing.
    """
    return np.asarray(np.maximum(rows, cols) * ROUNDING, np.float64)


def squared(values: Any) -> Floats:
    """Squares of numbers with a scale; NaN where float64 cannot hold them, beyond 1e±154."""
    v = as_floats(values)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.square(v)
        held = (v == 0) | (np.isfinite(squares) & (squares >= np.finfo(np.float64).tiny))
    return np.where(held, squares, np.nan)


def eigenvalues(spectra: Any, rows: Side, cols: Side) -> Floats:
    """Squared relative singular values, in [0, 1]; NaN for padding and rounding."""
    r = relative(spectra)
    with np.errstate(invalid="ignore"):
        kept = r > cutoff(rows, cols)[..., None]
    return np.where(kept, np.square(r), np.nan)

"""How a matrix's gradient changes from snapshot to snapshot."""

from typing import Any

import numpy as np

from spectra.metrics.spectrum import Floats, as_floats

SATURATED = 0.5
"""Cosine of consecutive gradients above which a matrix counts as saturated."""


def consecutive(cosine: Any) -> Floats:
    """Cosines of neighbouring snapshots (..., step - 1), from all pairs (..., step, step)."""
    c = as_floats(cosine)
    return np.asarray(np.diagonal(c, offset=1, axis1=-2, axis2=-1))


def saturation(cosine: Any, level: float = SATURATED) -> Floats:
    """Position of the first snapshot after which consecutive cosines stay above a level.

    Parameters
    ----------
    cosine
        (..., step, step). Pairs that were not recorded (NaN) are ignored.
    level
        Level of the cosine, in [-1, 1].

    Returns
    -------
    (...), counted from 0; NaN if the last recorded pair is not above the level, or no pair was
    recorded.
    """
    pairs = consecutive(cosine)
    recorded = ~np.isnan(pairs)
    with np.errstate(invalid="ignore"):
        turning = recorded & ~(pairs > level)
    positions = np.arange(1, pairs.shape[-1] + 1)
    last_turn = np.where(turning, positions, 0).max(axis=-1, initial=0)
    last_recorded = np.where(recorded, positions, 0).max(axis=-1, initial=0)
    return np.where(last_recorded > last_turn, last_turn.astype(np.float64), np.nan)


def turning(cosine: Any, positions: Any, first: float = 0.0) -> Floats:
    """Mean of 1 - cosine of consecutive snapshots, each weighted by the steps between them.

    Parameters
    ----------
    cosine
        (..., step, step).
    positions
        (step,) training steps.
    first
        Step of the first snapshot that counts.

    Returns
    -------
    (...), in [0, 2]: 0 for a gradient that never turns, 1 for one without memory.
    """
    pairs = consecutive(cosine)
    steps = as_floats(positions)
    weights = np.where(steps[:-1] >= first, np.diff(steps), 0.0)
    weights = np.where(np.isnan(pairs), 0.0, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights * (1 - np.nan_to_num(pairs))).sum(axis=-1) / weights.sum(-1))


def cosines_from_products(products: Any) -> Floats:
    r"""Cosines from inner products (..., n, n), :math:`\langle x,y\rangle/(\|x\|\|y\|)`.

    In [-1, 1], with a diagonal of exactly 1; NaN for vectors that are zero or not finite.
    """
    inner = as_floats(products)
    squares = np.diagonal(inner, axis1=-2, axis2=-1)
    norms = np.sqrt(np.where(np.isfinite(squares) & (squares > 0), squares, np.nan))
    cosine = np.clip(inner / norms[..., :, None] / norms[..., None, :], -1.0, 1.0)
    diagonal = np.arange(inner.shape[-1])
    cosine[..., diagonal, diagonal] = np.where(np.isnan(norms), np.nan, 1.0)
    return cosine


def mean_over_steps(values: Any, steps: Any) -> Floats:
    """Mean over the last axis, each snapshot weighted by the steps around it; NaNs are left out.

    Parameters
    ----------
    values
        (..., step).
    steps
        (step,) ascending.
    """
    v = as_floats(values)
    weights = np.gradient(as_floats(steps))
    there = np.isfinite(v)
    total = np.where(there, weights, 0.0).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(there, weights * v, 0.0).sum(axis=-1) / total)


def over_the_first(values: Any) -> Floats:
    """Values (..., step) over the first finite one; NaN if there is no finite value."""
    v = as_floats(values)
    there = np.isfinite(v)
    start = there.argmax(axis=-1)[..., None]
    first = np.where(there.any(axis=-1, keepdims=True), np.take_along_axis(v, start, -1), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(v / first)

"""Rank correlation with its uncertainty."""

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from spectra.metrics.spectrum import Floats, as_floats

FEWEST = 5
"""Pairs below which a correlation says nothing."""


class Correlation(NamedTuple):
    """Spearman's rank correlation and its interval."""

    value: float
    low: float
    high: float
    pairs: int


def rank_correlation(
    x: Any, y: Any, *, replicas: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Correlation:
    """Spearman's ρ with a percentile bootstrap interval over the pairs (Efron 1979).

    Parameters
    ----------
    x, y
        (pairs,). Pairs with a NaN are left out.
    replicas
        Resamples.
    confidence
        Level of the interval, in (0, 1).
    seed
        Seed of the resampling.

    Returns
    -------
    Correlation
        In [-1, 1]; NaN if there are fewer than 5 pairs or one side is constant. `pairs` is the
        number of pairs used.
    """
    if replicas < 1:
        raise ValueError(f"an interval needs at least one replica, not {replicas}")
    x, y = as_floats(x), as_floats(y)
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    count = len(x)
    if count < FEWEST:
        return Correlation(np.nan, np.nan, np.nan, count)
    value = float(_spearman(x[None], y[None])[0])
    # not scipy.stats.bootstrap: it returns no interval if one resample of few pairs is constant
    draws = np.random.default_rng(seed).integers(count, size=(replicas, count))
    replicated = _spearman(x[draws], y[draws])
    tail = (1 - confidence) / 2
    if np.isnan(value):
        return Correlation(np.nan, np.nan, np.nan, count)
    low, high = np.nanquantile(replicated, [tail, 1 - tail])
    return Correlation(value, float(low), float(high), count)


def _spearman(x: Floats, y: Floats) -> Floats:
    a, b = rankdata(x, axis=-1), rankdata(y, axis=-1)
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(-1) / np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1)))


def ranked_within(values: Any, groups: Any) -> Floats:
    """Ranks of values (n,) within their groups (n,), in (0, 1); NaN in groups of one value."""
    v, groups = as_floats(values), np.asarray(groups)
    ranked = np.full(len(v), np.nan)
    for group in set(groups.tolist()):
        mine = (groups == group) & np.isfinite(v)
        count = mine.sum()
        if count > 1:
            ranked[mine] = (rankdata(v[mine]) - 0.5) / count
    return ranked

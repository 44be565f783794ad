r"""Power-law tails: the exact fit of Clauset, Shalizi and Newman, for many samples at once.

Every candidate :math:`x_{min}` gets its maximum-likelihood exponent, and the candidate with the
least Kolmogorov-Smirnov distance wins (SIAM Review 51, 2009). Trying n candidates on n values takes
n² steps. Here a few of a candidate's values first bound its distance from below; only candidates
whose bound is under the best full distance so far are examined more closely. That drops nearly all
candidates early and none wrongly: the result is that of the full search, at a cost of about n·√n
steps.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from spectra.machine.cores import available_cores, in_threads
from spectra.metrics.spectrum import Floats, as_floats

Convention = Literal["left", "two-sided"]
MIN_TAIL = 3
"""Values in the smallest tail tried, as in the powerlaw package."""
BLOCK = 1 << 16
"""Distances computed at a time: their arrays stay in a core's cache."""
FIRST_GRID = 24
GRID_GROWTH = 4

_Index = npt.NDArray[np.intp]


class PowerLaw(NamedTuple):
    r"""Fits of :math:`p(x) \propto x^{-\alpha}` for :math:`x \ge x_{min}`, one per sample."""

    alpha: Floats
    r"""Exponent :math:`1 + n/\sum\ln(x/x_{min})`; NaN if there is nothing to fit."""
    alpha_sigma: Floats
    r"""Its standard error for a given :math:`x_{min}`, :math:`(\alpha-1)/\sqrt n`."""
    x_min: Floats
    """Least value of the tail, itself a value of the sample."""
    ks_distance: Floats
    """Kolmogorov-Smirnov distance between the tail and the fit."""
    tail_size: Floats
    """Number n of values in the tail; 0 if there is nothing to fit."""


class Sample(NamedTuple):
    """Positive values, descending, and their logarithms over the largest; then 0 and -inf."""

    values: Floats  # (samples, values)
    logs: Floats  # (samples, values)
    sizes: _Index  # (samples,)
    not_less: _Index | None  # (samples, values): how many are at least as large; None without ties
    top: Floats  # (samples,) logarithm of the largest

    def at_least(self, rows: _Index, ranks: _Index) -> _Index:
        """Number of values of a sample that are at least as large as its `ranks`-th (from 1)."""
        return ranks if self.not_less is None else self.not_less[rows, ranks - 1]

    def greater(self, rows: _Index, ranks: _Index) -> _Index:
        """Number of values of a sample that are greater than its `ranks`-th (from 1)."""
        if self.not_less is None:
            return ranks - 1
        tied = self.logs[rows, ranks - 1]
        above = ranks - 1
        while (same := (above > 0) & (self.logs[rows, np.maximum(above, 1) - 1] == tied)).any():
            above = above - same
        return above


def power_law(
    values: Any,
    *,
    ks: Convention = "left",
    min_tail: int = MIN_TAIL,
    x_min: npt.ArrayLike | None = None,
) -> PowerLaw:
    r"""Fit a power law to the tail of every sample.

    Parameters
    ----------
    values
        (..., values) in any order; NaN, zero and negative values are left out.
    ks
        Distance that :math:`x_{min}` minimises. ``left`` compares the fit with the share of
        smaller values, as Clauset's own code, powerlaw and WeightWatcher do; ``two-sided`` is the
        Kolmogorov-Smirnov distance itself, with the shares on both sides of every value.
    min_tail
        Fewest values in a tail; at least 2.
    x_min
        Start of the tail, a number or one per sample; by default it is searched for.

    Returns
    -------
    PowerLaw
        Arrays without the last axis. Units of `x_min` are those of `values`; the rest does not
        depend on their scale.

    Examples
    --------
    >>> fit = power_law([1.0, 1.1, 1.3, 1.6, 2.0, 2.7, 4.0, 8.0])
    >>> round(float(fit.alpha), 3), float(fit.x_min), int(fit.tail_size)
    (2.484, 1.1, 7)
    """
    if ks not in ("left", "two-sided"):
        raise ValueError(f"`ks` must be 'left' or 'two-sided', not {ks!r}")
    if min_tail < 2:
        raise ValueError(f"`min_tail` must be at least 2, not {min_tail}")
    x = as_floats(values)
    shape, width = x.shape[:-1], x.shape[-1]
    if not x.size:
        nothing = np.full(shape, np.nan)
        return PowerLaw(nothing, nothing, nothing, nothing, np.zeros(shape))
    x = x.reshape(-1, width)
    if x_min is not None:
        starts = np.broadcast_to(np.asarray(x_min, np.float64), shape).reshape(-1)
        if (starts <= 0).any():
            raise ValueError("`x_min` must be positive: a power law starts above 0")
        fits = _in_parallel(lambda part: _fit_from(sample(x[part]), starts[part], ks), len(x))
    else:
        fits = _in_parallel(lambda part: _fit(sample(x[part]), ks, min_tail), len(x))
    return PowerLaw(*(np.concatenate(field).reshape(shape) for field in zip(*fits, strict=True)))


def hill_alpha(values: Any, share: float = 0.5) -> Floats:
    r"""Hill's estimate of the exponent from a fixed share of the values.

    :math:`\alpha = 1 + k/\sum_{i<k}\ln(\lambda_i/\lambda_k)` with :math:`k` the `share` of the
    values (Hill 1975; AlphaPruning and TempBalance choose the half). There is no search and no
    test: any sample yields a number.

    Parameters
    ----------
    values
        (..., values); NaN, zero and negative values are left out.
    share
        Share of the values, in (0, 1].

    Returns
    -------
    (...); NaN if k is under 2 or the k largest values are equal.
    """
    x = as_floats(values)
    if not x.size:
        return np.full(x.shape[:-1], np.nan)
    s = sample(x.reshape(-1, x.shape[-1]))
    k = (s.sizes * share).astype(np.intp)
    rows = np.arange(len(k))
    total = np.cumsum(np.where(np.isfinite(s.logs), s.logs, 0.0), axis=-1)
    last = np.maximum(k, 1) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = total[rows, last] - k * s.logs[rows, last]
        alpha = np.where((k >= 2) & (excess > 0), 1 + k / excess, np.nan)
    return alpha.reshape(x.shape[:-1])


def alpha_weighted(alpha: Any, spectral_norm: Any) -> Floats:
    r""":math:`\alpha\log_{10}\lambda_{max}` (Martin, Peng and Mahoney 2021); grows with scale."""
    with np.errstate(divide="ignore"):
        return np.asarray(as_floats(alpha) * 2 * np.log10(as_floats(spectral_norm)))


def log_alpha_norm(alpha: Any, spectra: Any) -> Floats:
    r""":math:`\log_{10}\sum\lambda^\alpha` (Martin and Mahoney 2021); grows with scale.

    Summed in logarithms: the powers themselves overflow for large eigenvalues.
    """
    from scipy.special import logsumexp

    a, s = as_floats(alpha), as_floats(spectra)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(s > 0, 2 * np.log(s), -np.inf) * a[..., None]
    return np.asarray(logsumexp(logs, axis=-1) / np.log(10))


def sample(x: Floats) -> Sample:
    """Sort samples (samples, values), and take logarithms relative to their largest value."""
    positive = np.where(x > 0, x, 0.0)
    ordered = -np.sort(-positive, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(ordered)
        top = logs[:, 0].copy()
        logs = np.where(ordered > 0, logs - top[:, None], -np.inf)
    sizes = (ordered > 0).sum(axis=-1).astype(np.intp)
    tied = (logs[:, 1:] == logs[:, :-1]) & np.isfinite(logs[:, 1:])
    return Sample(ordered, logs, sizes, _not_less(tied) if tied.any() else None, top)


def _not_less(tied_with_previous: npt.NDArray[np.bool_]) -> _Index:
    samples, width = len(tied_with_previous), tied_with_previous.shape[1] + 1
    last_of_ties = np.ones((samples, width), bool)
    last_of_ties[:, :-1] = ~tied_with_previous
    ends = np.where(last_of_ties, np.arange(1, width + 1), width + 1)
    return np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1].astype(np.intp)


def _fit(s: Sample, ks: Convention, min_tail: int) -> tuple[Floats, ...]:
    rates, candidates = _rates(s, min_tail)
    rows, tails = np.nonzero(candidates)
    tails += 1
    distances = _Distances(s, rates, ks)
    best = np.full(len(s.sizes), np.inf)
    chosen = np.zeros(len(s.sizes), np.intp)
    grid = FIRST_GRID
    width = s.logs.shape[1]
    while len(rows):
        bounds = distances(rows, tails, grid)
        promising = _first_least(rows, bounds)
        in_full = bounds[promising]
        if grid < width:  # so far these are bounds from below
            in_full = distances(rows[promising], tails[promising], width)
        _keep_better(best, chosen, rows[promising], tails[promising], in_full)
        if grid >= width:
            break
        left = bounds <= best[rows]
        left[promising] = False
        rows, tails, bounds = rows[left], tails[left], bounds[left]
        grid = min(grid * GRID_GROWTH, width)
    return _described(s, rates, chosen, best)


def _keep_better(
    best: Floats, chosen: _Index, rows: _Index, tails: _Index, distances: Floats
) -> None:
    """Keep better fits; at equal distance the smaller `x_min` wins, as in a search from below."""
    better = (distances < best[rows]) | ((distances == best[rows]) & (tails > chosen[rows]))
    best[rows[better]], chosen[rows[better]] = distances[better], tails[better]


def _first_least(rows: _Index, bounds: Floats) -> _Index:
    """Position of the least bound of every row; rows are in order."""
    order = np.lexsort((bounds, rows))
    first = np.ones(len(order), bool)
    first[1:] = rows[order][1:] != rows[order][:-1]
    return np.asarray(order[first])


def _fit_from(s: Sample, starts: Floats, ks: Convention) -> tuple[Floats, ...]:
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.log(starts) - s.top
    # a start that equals one of the values must include it, however the logarithms round
    tails = (s.logs >= (low - 1e-12)[:, None]).sum(axis=-1).astype(np.intp)
    rates, _ = _rates(s, 2)
    rows = np.flatnonzero(tails >= 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.where(np.isfinite(s.logs), s.logs, 0.0).cumsum(axis=-1)
        at = total[rows, tails[rows] - 1] - tails[rows] * low[rows]
        rates[rows, tails[rows] - 1] = np.where(at > 0, tails[rows] / at, np.nan)
    distances = np.full(len(tails), np.nan)
    in_full = _Distances(s, rates, ks, low)
    distances[rows] = in_full(rows, tails[rows], s.logs.shape[1])
    return _described(s, rates, np.where(tails >= 2, tails, 0), distances, starts)


def _rates(s: Sample, min_tail: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Exponent minus 1 of every tail (samples, values), and whether the tail is a candidate."""
    tails = np.arange(1, s.logs.shape[1] + 1)
    filled = np.where(np.isfinite(s.logs), s.logs, 0.0)
    excess = np.cumsum(filled, axis=-1) - tails * filled
    candidates = (tails >= min_tail) & (tails <= s.sizes[:, None]) & (excess > 0)
    if s.not_less is not None:  # a tail holds all of its least values
        candidates &= s.not_less == tails
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(candidates, tails / excess, np.nan), candidates


class _Distances:
    """Kolmogorov-Smirnov distances of tails from their fits, on all or some of the values."""

    def __init__(self, s: Sample, rates: Floats, ks: Convention, low: Floats | None = None) -> None:
        self.sample, self.rates, self.ks, self.low = s, rates, ks, low

    def __call__(self, rows: _Index, tails: _Index, grid: int) -> Floats:
        """Greatest difference over `grid` evenly spaced values of each tail, or over all if fewer.

        Parameters
        ----------
        rows, tails
            (pairs,) indices of samples, and sizes of tails.
        grid
            Number of values to compare.
        """
        found = np.empty(len(rows))
        block = max(1, BLOCK // grid)
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            points = min(grid, int(tails[part].max()))
            found[part] = self._block(rows[part, None], tails[part, None], points)
        return found

    def _block(self, rows: _Index, tails: _Index, points: int) -> Floats:
        s = self.sample
        # ranks 1 to `tails`, each at least once if there are as many points
        spacing = (tails - 1) / max(points - 1, 1)
        ranks = 1 + np.minimum(np.ceil(np.arange(points) * spacing).astype(np.intp), tails - 1)
        low = s.logs[rows, tails - 1] if self.low is None else self.low[rows]
        beyond = np.exp((low - s.logs[rows, ranks - 1]) * self.rates[rows, tails - 1])
        difference = np.abs(s.at_least(rows, ranks) / tails - beyond).max(axis=-1)
        if self.ks == "left":
            return np.asarray(difference)
        other = np.abs(s.greater(rows, ranks) / tails - beyond).max(axis=-1)
        return np.asarray(np.maximum(difference, other))


def _described(
    s: Sample, rates: Floats, tails: _Index, distances: Floats, starts: Floats | None = None
) -> tuple[Floats, ...]:
    found = tails > 0
    rows, last = np.arange(len(tails)), np.maximum(tails, 1) - 1
    rate = np.where(found, rates[rows, last], np.nan)
    found &= np.isfinite(rate)
    with np.errstate(invalid="ignore"):
        x_min = s.values[rows, last] if starts is None else starts
        sigma = rate / np.sqrt(np.maximum(tails, 1))
    return (
        1 + rate,
        sigma,
        np.where(found, x_min, np.nan),
        np.where(found, distances, np.nan),
        np.where(found, tails, 0).astype(np.float64),
    )


def _in_parallel(
    fit: Callable[[slice], tuple[Floats, ...]], count: int
) -> list[tuple[Floats, ...]]:
    """Fit samples in blocks on all cores; numpy's loops release Python's lock."""
    block = max(1, min(64, -(-count // (2 * available_cores()))))
    parts = [slice(start, start + block) for start in range(0, count, block)]
    return list(in_threads(fit, parts))

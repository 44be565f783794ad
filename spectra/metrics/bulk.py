r"""Noise in a spectrum: the random-matrix bulk, and the spikes above it.

A rows x cols matrix of independent entries of variance :math:`\sigma^2` has eigenvalues
:math:`\lambda = s^2` that fill the Marchenko-Pastur bulk up to :math:`\sigma^2(\sqrt n+\sqrt m)^2`,
m ≤ n its sides; the largest fluctuates around that edge by the Tracy-Widom law. Eigenvalues are
those of :math:`XX^T`, not divided by n, so that they compare with `x_min` and `spectral_norm`
squared.

A zero matrix has edge 0, no spikes and no soft rank (NaN). If more than half of the singular values
are zero or rounding, the noise is zero: the edge is 0 and every other value is a spike.
"""

import functools
from typing import Any

import numpy as np
from scipy.integrate import cumulative_simpson
from scipy.linalg import eigvalsh_tridiagonal
from scipy.optimize import brentq
from scipy.stats import gamma

from spectra.metrics.spectrum import Floats, Side, as_floats, cutoff, largest, relative, squared

LEVEL = 0.01
"""Share of pure-noise matrices that may show a spike."""
ASYMPTOTIC = 32
"""Shorter side from which the asymptotic laws hold."""
SIMULATED = 2000
"""Small matrices drawn at a time."""
_TW_SHAPE, _TW_SCALE, _TW_SHIFT = 46.44604884387, 0.1860540228279, 9.848007781128567


def noise_scale(spectra: Any, rows: Side, cols: Side) -> Floats:
    r"""Standard deviation σ of the entries, from the median, which spikes do not move.

    :math:`s_{med}/\sqrt{n\mu_\beta}`, with :math:`\mu_\beta` the median of the Marchenko-Pastur
    law for :math:`\beta=m/n` (Gavish and Donoho 2014, section III-E).

    Parameters
    ----------
    spectra
        (..., index), descending.
    rows, cols
        Sides of the matrices, in the shape of the leading axes or to broadcast against it.
    """
    m, n = _sides(spectra, rows, cols)
    return np.asarray(largest(spectra) * _median(spectra, m, n) / np.sqrt(n * _medians(m / n)))


def mp_edge(spectra: Any, rows: Side, cols: Side) -> Floats:
    r"""Upper edge of the Marchenko-Pastur bulk, :math:`\sigma^2(\sqrt n+\sqrt m)^2`.

    In units of the eigenvalues; σ is `noise_scale`, which has the same parameters (Marchenko and
    Pastur 1967).
    """
    m, n = _sides(spectra, rows, cols)
    return squared(noise_scale(spectra, m, n) * (np.sqrt(n) + np.sqrt(m)))


def spike_threshold(spectra: Any, rows: Side, cols: Side, level: float = LEVEL) -> Floats:
    r"""Eigenvalue that the largest of pure noise exceeds with probability at most `level`.

    Parameters
    ----------
    spectra, rows, cols
        As for `noise_scale`.
    level
        Probability of a false spike, in [0.001, 0.5].

    Notes
    -----
    σ² times a factor that depends on the shape alone. From sides of 32 up it is the quantile of
    :math:`(\mu+\tau W)/(1+b+vZ)`: W follows the Tracy-Widom law with Ma's centre :math:`\mu =
    (\sqrt{n_-}+\sqrt{m_-})^2` and scale :math:`\tau = (\sqrt{n_-}+\sqrt{m_-})
    (1/\sqrt{n_-}+1/\sqrt{m_-})^{1/3}`, :math:`n_- = n-\frac12`, :math:`m_- = m-\frac12`
    (Bernoulli 18, 2012), and Z is normal: the estimate of σ² fluctuates as well, by
    :math:`v = \sqrt{\ln m+0.4}/(\pi m\rho\mu_\beta)`, ρ the density at the median (Gustavsson,
    Annales de l'IHP 41, 2005), and is low by :math:`b = -0.45\,\beta/m` (fitted to simulations).
    Without these two terms, 128 x 128 matrices show three times as many false spikes as `level`.
    For smaller sides the factor is the upper quantile of seeded simulations.
    """
    return squared(_largest_of_noise(spectra, rows, cols, level))


def mp_spikes(spectra: Any, rows: Side, cols: Side, level: float = LEVEL) -> Floats:
    """Number of eigenvalues above `spike_threshold`, which has the same parameters."""
    s = as_floats(spectra)
    top = largest(s)
    with np.errstate(invalid="ignore"):
        threshold = _largest_of_noise(s, rows, cols, level)
        real = np.maximum(threshold, cutoff(rows, cols) * top)
        spikes = (s > real[..., None]).sum(axis=-1).astype(np.float64)
    return np.where(np.isnan(top), np.nan, spikes)


def mp_soft_rank(spectra: Any, rows: Side, cols: Side) -> Floats:
    r"""Bulk edge over the largest eigenvalue, :math:`\lambda_+/\lambda_{max}`.

    About 1 for pure noise, near 0 if one direction dominates, over 1 for a spectrum flatter than
    noise, at most :math:`(1+\sqrt\beta)^2/\mu_\beta`, 6.1 for squares (Martin and Mahoney 2021,
    section 3). Parameters as for `noise_scale`.
    """
    m, n = _sides(spectra, rows, cols)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = noise_scale(spectra, m, n) * (np.sqrt(n) + np.sqrt(m)) / largest(spectra)
    return np.asarray(np.square(ratio))


def _largest_of_noise(spectra: Any, rows: Side, cols: Side, level: float) -> Floats:
    """Square root of `spike_threshold`: a singular value."""
    if not 0.001 <= level <= 0.5:
        raise ValueError(f"`level` must be in [0.001, 0.5], not {level}")
    m, n = _sides(spectra, rows, cols)
    factor = np.vectorize(_spike_factor, otypes=[np.float64])(m, n, level)
    return np.asarray(noise_scale(spectra, m, n) * np.sqrt(factor))


def optimal_rank(spectra: Any, rows: Side, cols: Side) -> Floats:
    r"""Gavish and Donoho's rank: singular values above the best hard threshold for unknown noise.

    :math:`\omega(\beta)\,s_{med}` with :math:`\omega(\beta)=\lambda_*(\beta)/\sqrt{\mu_\beta}`
    (IEEE Transactions on Information Theory 60, 2014); 2.858 for square matrices. Parameters as
    for `noise_scale`.
    """
    m, n = _sides(spectra, rows, cols)
    beta = m / n
    star = np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1)))
    r = relative(spectra)
    threshold = star / np.sqrt(_medians(beta)) * _median(spectra, m, n)
    with np.errstate(invalid="ignore"):
        real = np.maximum(threshold, cutoff(m, n))
        rank = (r > real[..., None]).sum(axis=-1).astype(np.float64)
    return np.where(np.isnan(largest(spectra)), np.nan, rank)


def random_distance(spectra: Any, rows: Side, cols: Side, seed: int = 0) -> Floats:
    r"""Jensen-Shannon distance of the eigenvalues from those of a seeded Gaussian matrix.

    Both are divided by their sums and compared in order of size: 0 is noise, at most
    :math:`\sqrt{\ln 2} = 0.833` (Endres and Schindelin 2003). The Gaussian matrix has the shape of
    the matrix.

    Parameters
    ----------
    spectra, rows, cols
        As for `noise_scale`.
    seed
        Seed of the Gaussian matrix.
    """
    squares = np.square(relative(spectra))
    m, n = _sides(spectra, rows, cols)
    noise = np.zeros_like(squares)
    shapes = np.stack([m, n], axis=-1).astype(np.int64)
    for shape in np.unique(shapes.reshape(-1, 2), axis=0):
        values = _random_eigenvalues(int(shape[0]), int(shape[1]), seed)[: squares.shape[-1]]
        noise[(shapes == shape).all(axis=-1), : len(values)] = values
    with np.errstate(divide="ignore", invalid="ignore"):
        p = squares / squares.sum(axis=-1, keepdims=True)
        q = noise / noise.sum(axis=-1, keepdims=True)
        middle = (p + q) / 2
        divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return np.sqrt(np.maximum(divergence, 0.0))


def random_spectrum(rows: int, cols: int, seed: int = 0) -> Floats:
    r"""Singular values of a Gaussian rows x cols matrix, descending, without forming it.

    The squared values of a bidiagonal matrix of independent chi variables have the same law
    (Dumitriu and Edelman, Journal of Mathematical Physics 43, 2002): m² steps instead of m²n.
    """
    m, n = min(rows, cols), max(rows, cols)
    draw = np.random.default_rng([seed, m, n])
    main = np.sqrt(draw.chisquare(n - np.arange(m)))
    side = np.sqrt(draw.chisquare(np.arange(m - 1, 0, -1)))
    gram = np.square(main) + np.square(np.concatenate([[0.0], side]))
    values = eigvalsh_tridiagonal(gram, main[:-1] * side)
    return np.asarray(np.sqrt(values.clip(min=0.0))[::-1])


@functools.cache
def marchenko_pastur_median(beta: float) -> float:
    r"""Median of the Marchenko-Pastur law for variance 1 and :math:`0<\beta\le 1`."""
    centre, half = 1 + beta, 2 * np.sqrt(beta)
    angle = np.linspace(0, np.pi, 4097)
    x = centre - half * np.cos(angle)
    with np.errstate(divide="ignore", invalid="ignore"):
        density = (half * np.sin(angle)) ** 2 / (2 * np.pi * beta * x)
    # at x = 0, which only square matrices reach
    density[~np.isfinite(density)] = 2 / np.pi
    share = cumulative_simpson(density, x=angle, initial=0)
    return float(centre - half * np.cos(np.interp(0.5 * share[-1], share, angle)))


def _marchenko_pastur_density(x: float, beta: float) -> float:
    centre, half = 1 + beta, 2 * np.sqrt(beta)
    return float(np.sqrt(half**2 - (x - centre) ** 2) / (2 * np.pi * beta * x))


@functools.cache
def _spike_factor(m: float, n: float, level: float) -> float:
    if m < ASYMPTOTIC:
        return _simulated_spike_factor(int(m), int(n), level)
    beta = m / n
    median = marchenko_pastur_median(beta)
    density = _marchenko_pastur_density(median, beta)
    spread = np.sqrt(np.log(m) + 0.4) / (np.pi * m * density * median)
    bias = -0.45 * beta / m
    long, short = np.sqrt(n - 0.5), np.sqrt(m - 0.5)
    centre = (long + short) ** 2
    width = (long + short) * np.cbrt(1 / long + 1 / short)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()

    def excess(factor: float) -> float:
        standard = (factor * (1 + bias + spread * nodes) - centre) / width
        return float(weights @ tracy_widom_survival(standard)) - level

    return float(brentq(excess, centre - 5 * width, 3 * centre + 30 * width))


def _simulated_spike_factor(m: int, n: int, level: float) -> float:
    draw = np.random.default_rng([m, n])
    draws, diagonal = int(200 / level), np.arange(m)
    found = []
    for start in range(0, draws, SIMULATED):
        count = min(SIMULATED, draws - start)
        # the Gram matrix of the bidiagonal matrix of `random_spectrum`
        main = draw.chisquare(n - diagonal, (count, m))
        side = draw.chisquare(np.maximum(m - diagonal, 1), (count, m)) * (diagonal > 0)
        gram = np.zeros((count, m, m))
        gram[:, diagonal, diagonal] = main + side
        off = np.sqrt(main[:, :-1] * side[:, 1:])
        gram[:, diagonal[1:], diagonal[:-1]] = gram[:, diagonal[:-1], diagonal[1:]] = off
        s = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0.0))[:, ::-1]
        found.append(np.square(s[:, 0] / noise_scale(s, m, n)))
    # three standard errors above the quantile, and beyond rounding
    exceeding = int(200 - 3 * np.sqrt(200))
    return float(np.sort(np.concatenate(found))[-exceeding]) * (1 + 1e-9)


def tracy_widom_survival(x: Any) -> Floats:
    r"""Probability that the Tracy-Widom law for real matrices (β = 1) exceeds x.

    Approximated by a shifted gamma law with the same first three moments; quantiles are right to
    0.01 between 0.01 and 0.99 (Chiani, Journal of Multivariate Analysis 129, 2014).
    """
    return np.asarray(gamma.sf(as_floats(x) + _TW_SHIFT, _TW_SHAPE, scale=_TW_SCALE))


@functools.lru_cache(maxsize=64)
def _random_eigenvalues(rows: int, cols: int, seed: int) -> Floats:
    return np.square(random_spectrum(rows, cols, seed))


def _medians(beta: Floats) -> Floats:
    distinct, inverse = np.unique(beta, return_inverse=True)
    return np.array([marchenko_pastur_median(float(b)) for b in distinct])[inverse].reshape(
        beta.shape
    )


def _sides(spectra: Any, rows: Side, cols: Side) -> tuple[Floats, Floats]:
    shape = as_floats(spectra).shape[:-1]
    short = np.broadcast_to(np.minimum(rows, cols), shape).astype(np.float64)
    long = np.broadcast_to(np.maximum(rows, cols), shape).astype(np.float64)
    return short, long


def _median(spectra: Any, m: Floats, n: Floats) -> Floats:
    """Median singular value over the largest; 0 if it is rounding."""
    r = relative(spectra)
    r = np.concatenate([r, np.zeros((*r.shape[:-1], 1))], axis=-1)
    size = np.minimum(m, r.shape[-1] - 1).astype(np.intp)
    pair = np.stack([(size - 1) // 2, size // 2], axis=-1)
    median = np.take_along_axis(r, pair, axis=-1).mean(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(median > cutoff(m, n), median, median * 0))


def _relative_entropy(p: Floats, q: Floats) -> Floats:
    terms = np.where(p > 0, p * np.log(p / q), np.where(np.isnan(p), np.nan, 0.0))
    return np.asarray(terms.sum(axis=-1))

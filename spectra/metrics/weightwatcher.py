r"""WeightWatcher 0.7.7's columns, computed as it computes them, for comparable numbers.

Kept apart from our own measures because several of its conventions depend on the matrix's scale or
are not calibrated (docs/measures.md):

- it drops eigenvalues up to 1e-5 before the fit, so a matrix times 0.001 has another α;
- the entropy adds 1e-10 to every probability and divides by the logarithm of the numerical rank;
- the bulk's σ is a least-squares fit to a kernel density of bandwidth 0.1, for square matrices of a
  quarter circle whose radius stays 2;
- it counts spikes above an edge widened by the square root of a Tracy-Widom scale;
- under 20 values it uses another estimator, bias-corrected, with at least 8 values in the tail.
"""

from typing import Any

import numpy as np
from scipy.optimize import brute

from spectra.metrics.spectrum import Floats, as_floats, squared
from spectra.metrics.tails import power_law

DROPPED = 1e-5
SMALL = 20
SMALLEST_TAIL = 8
FEWEST = 8
"""Fewest singular values of a matrix; WeightWatcher skips smaller ones by default."""
COLUMNS = {
    "alpha": "exponent of the power law",
    "D": "Kolmogorov-Smirnov distance",
    "xmin": "least eigenvalue of the tail",
    "stable_rank": "stable rank",
    "spectral_norm": "largest eigenvalue (not singular value)",
    "log_norm": "log10 of the sum of eigenvalues",
    "alpha_weighted": "alpha times log10 of the largest eigenvalue",
    "log_alpha_norm": "log10 of the sum of eigenvalues to the power alpha",
    "entropy": "entropy of the eigenvalues over the logarithm of the rank",
    "num_pl_spikes": "eigenvalues in the tail",
    "matrix_rank": "numerical rank in float64",
    "mp_softrank": "fitted bulk edge over the largest eigenvalue",
    "num_spikes": "eigenvalues above the widened edge",
}
_FAILED = -1.0


def columns(spectrum: Any, rows: int, cols: int) -> dict[str, float]:
    """Columns of one matrix.

    Parameters
    ----------
    spectrum
        (index,) singular values; NaN is padding.
    rows, cols
        Sides of the matrix.

    Returns
    -------
    By the names of `COLUMNS`. As in WeightWatcher, a fit that fails is -1. NaN if the spectrum is
    missing, has fewer than 8 values (which it skips), or has a largest value whose square is beyond
    float64.
    """
    s = as_floats(spectrum)
    s = s[~np.isnan(s)]
    if len(s) < FEWEST or np.isnan(squared(s.max())):
        return dict.fromkeys(COLUMNS, np.nan)
    evals = np.sort(np.square(s))
    alpha, distance, x_min, tail = _fit(evals)
    short, long = min(rows, cols), max(rows, cols)
    rank = np.count_nonzero(np.sqrt(evals) > np.sqrt(evals[-1]) * long * np.finfo(np.float64).eps)
    with np.errstate(all="ignore"):
        p = evals / evals.sum() + 1e-10
        spikes, soft_rank = _bulk(evals, short, long)
        return {
            "alpha": alpha,
            "D": distance,
            "xmin": x_min,
            "stable_rank": float(evals.sum() / evals[-1]),
            "spectral_norm": float(evals[-1]),
            "log_norm": float(np.log10(evals.sum())),
            "alpha_weighted": float(alpha * np.log10(evals[-1])),
            "log_alpha_norm": float(np.log10((evals**alpha).sum())),
            "entropy": float(-(p * np.log(p)).sum() / np.log(rank + 1e-10)),
            "num_pl_spikes": float(tail),
            "matrix_rank": float(rank),
            "mp_softrank": soft_rank,
            "num_spikes": spikes,
        }


def _fit(evals: Floats) -> tuple[float, float, float, float]:
    values = evals[evals > DROPPED]
    if len(values) < 2:
        return _FAILED, _FAILED, _FAILED, _FAILED
    if len(values) < SMALL:
        alpha, distance, x_min = _small_fit(values)
    else:
        fit = power_law(values, min_tail=2)
        alpha, distance, x_min = (float(v) for v in (fit.alpha, fit.ks_distance, fit.x_min))
    return alpha, distance, x_min, float((evals >= x_min).sum())


def _small_fit(values: Floats) -> tuple[float, float, float]:
    """Fit with the least distance, over tails of at least 8 values or the whole sample."""
    logs, count = np.log(values), len(values)
    best = (0.0, 1.0, float(values[0]))
    for first in range(count - 1):
        n = count - first
        excess = (logs[first:] - logs[first]).sum()
        if (n < SMALLEST_TAIL and not (first == 0 and count < SMALLEST_TAIL)) or excess <= 1e-12:
            continue
        alpha = 1 + (n - 1) / excess
        fitted = 1 - (values[first:] / values[first]) ** (1 - alpha)
        distance = float(np.abs(fitted - np.arange(n) / n).max())
        if distance < best[1]:
            best = (float(alpha), distance, float(values[first]))
    return best


def _bulk(evals: Floats, short: int, long: int) -> tuple[float, float]:
    """Spikes and soft rank of eigenvalues scaled to mean 1."""
    if not evals[-1] > 0:
        return _FAILED, _FAILED
    scaled = evals * (len(evals) / evals.sum())
    aspect = long / short
    sigma = _fitted_sigma(scaled, aspect)
    edge = (sigma * (1 + 1 / np.sqrt(aspect))) ** 2
    width = 1 / np.sqrt(aspect) * edge ** (2 / 3) * short ** (-2 / 3)
    spikes = (scaled > edge + np.sqrt(width)).sum()
    return float(spikes), float(edge / scaled[-1])


def _fitted_sigma(scaled: Floats, aspect: float) -> float:
    """σ whose law is nearest to a kernel density in least squares, on WeightWatcher's grid."""
    values = np.sqrt(scaled) if aspect == 1 else scaled
    grid = np.linspace(0, values[-1] + 0.5, 1000)
    density = _linear_kernel_density(values, grid, 0.1)
    dense = density > 0.01
    x, y = grid[dense], density[dense]
    peak = x[y == y.max()][0]

    def misfit(sigma: Any) -> float:
        sigma = float(np.squeeze(sigma))
        if aspect == 1:
            law = np.nan_to_num(np.sqrt(4 - x**2) / (np.pi * sigma**2))
        else:
            upper, lower = ((sigma * (1 + sign / np.sqrt(aspect))) ** 2 for sign in (1, -1))
            if upper < peak or upper > x.max() or lower > peak:
                return len(x) * 1e6
            law = np.nan_to_num(
                np.sqrt((upper - x) * (x - lower)) / (2 * np.pi * sigma**2 * x / aspect)
            )
        return float(np.square(law - y).sum())

    largest = np.sqrt(scaled[-1]) / (1 + 1 / np.sqrt(aspect))
    steps = (slice(0.05 * largest, 2.0 * largest, 0.01 * largest),)
    return float(brute(misfit, steps)[0])


def _linear_kernel_density(values: Floats, grid: Floats, width: float) -> Floats:
    distances = np.abs(grid[:, None] - values[None])
    return np.asarray(np.maximum(1 - distances / width, 0).sum(axis=1) / (len(values) * width))

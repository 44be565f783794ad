r"""Is a tail a power law at all? A bootstrap test, comparisons with other laws, and a verdict.

After Clauset, Shalizi and Newman (SIAM Review 51, 2009), sections 4 and 5. A fit finds an exponent
for any numbers; only these tests say whether it means something.
"""

from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import erfc, erfcx, log_ndtr
from scipy.stats import chi2

from spectra.metrics.spectrum import Floats, as_floats
from spectra.metrics.tails import MIN_TAIL, Convention, PowerLaw, power_law

ENOUGH = 50
"""Values in a tail below which an exponent is unreliable (Clauset et al., section 3.5)."""
SIGNIFICANT = 0.1
"""p-values below this speak against a power law, as in Clauset et al."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)


class Verdict(StrEnum):
    """Verdict on a fitted tail."""

    POWER_LAW = "power law"
    TRUNCATED = "truncated power law"
    NOT = "not a power law"
    TOO_FEW = "too few values"
    UNDEFINED = "undefined"


class Bootstrap(NamedTuple):
    """Fits to samples of the fitted law, one entry per sample of the data."""

    p_value: Floats
    """Share of them farther from their fit than the data; small speaks against the power law."""
    alpha_error: Floats
    r"""Standard deviation of their exponents; unlike σ_α it includes the search for x_min."""


class Ratio(NamedTuple):
    """Log-likelihood ratio of the power law to another law, on the fitted tail."""

    normalised: Floats
    r""":math:`R/(\sigma\sqrt n)`; positive favours the power law, 0 where the other law's best fit
    is the power law itself."""
    p_value: Floats
    """p-value of a ratio so far from 0; if large, the data cannot tell the laws apart."""


def bootstrap(
    values: Any,
    fit: PowerLaw,
    *,
    replicas: int = 100,
    seed: int = 0,
    ks: Convention = "left",
    min_tail: int = MIN_TAIL,
) -> Bootstrap:
    r"""Test fits on samples of the fitted law, with x_min chosen anew in each.

    Parameters
    ----------
    values, fit, ks, min_tail
        Arguments and result of `power_law`: (..., values).
    replicas
        Samples to draw; the p-value has a standard error of at most :math:`1/(2\sqrt{replicas})`.
    seed
        Seed of the draws. Every sample has the same stream, so its result does not depend on its
        position.

    Notes
    -----
    A replica has as many values as the sample. Each comes from the fitted power law with
    probability n/N, and otherwise from the sample's own values below x_min (Clauset et al.,
    section 4.1).
    """
    x = as_floats(values)
    rows = x.reshape(-1, x.shape[-1])
    alpha, _, x_min, distance, tail = (field.reshape(-1) for field in fit)
    p_value, error = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    for i in np.flatnonzero(tail > 0):
        again = power_law(
            _replicas(rows[i], alpha[i], x_min[i], replicas, seed), ks=ks, min_tail=min_tail
        )
        p_value[i] = (again.ks_distance >= distance[i]).mean()
        error[i] = np.nanstd(again.alpha)
    return Bootstrap(p_value.reshape(x.shape[:-1]), error.reshape(x.shape[:-1]))


def _replicas(x: Floats, alpha: float, x_min: float, replicas: int, seed: int) -> Floats:
    x = x[x > 0]
    body = x[x < x_min]
    draw = np.random.default_rng(seed)
    in_tail = draw.random((replicas, len(x))) < (len(x) - len(body)) / len(x)
    tails = x_min * (1 - draw.random((replicas, len(x)))) ** (-1 / (alpha - 1))
    if not len(body):
        return np.asarray(tails)
    return np.where(in_tail, tails, draw.choice(body, (replicas, len(x))))


def against_exponential(values: Any, fit: PowerLaw) -> Ratio:
    r"""Against :math:`p(x) \propto e^{-\lambda x}` beyond x_min (Vuong's test)."""
    u, inside, rate = _tail_logarithms(values, fit)
    n = inside.sum(axis=-1)
    excess = np.where(inside, np.expm1(u), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (n / excess.sum(axis=-1))[:, None]
        other = np.log(slope) - slope * excess
    return _vuong(_power_law_logs(u, rate) - other, inside, as_floats(values).shape[:-1])


def against_lognormal(values: Any, fit: PowerLaw) -> Ratio:
    r"""Against a lognormal cut off at x_min, with its exact maximum-likelihood fit (Vuong's test).

    The logarithms follow a normal distribution truncated from below, whose best fit exists if their
    coefficient of variation is below 1; otherwise the fit tends to the power law itself, and the
    ratio is 0 (Castillo 1994).
    """
    u, inside, rate = _tail_logarithms(values, fit)
    n = inside.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(inside, u, 0.0).sum(axis=-1) / n
        moment = np.where(inside, u**2, 0.0).sum(axis=-1) / n / mean**2
        cut = _truncation(moment)
        hazard = _hazard(cut)
        spread = (mean / (hazard - cut))[:, None]
        z = u / spread + cut[:, None]
        other = -0.5 * z**2 - np.log(spread) - 0.5 * np.log(2 * np.pi) - log_ndtr(-cut)[:, None]
    # densities of u = ln(x/x_min): both have the same factor 1/x
    difference = _power_law_logs(u, rate, of_logarithm=True) - other
    difference = np.where((moment < _MOST)[:, None], difference, 0.0)
    return _vuong(difference, inside, as_floats(values).shape[:-1])


def against_truncated(values: Any, fit: PowerLaw) -> Ratio:
    r"""Against a power law with a cut-off, :math:`x^{-\alpha}e^{-\lambda x}`.

    The power law is one case of it (nested), so twice the ratio follows :math:`\chi^2_1` (Wilks),
    and the ratio is at most 0.
    """
    u, inside, rate = _tail_logarithms(values, fit)
    n = inside.sum(axis=-1).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        growth = np.where(inside, np.expm1(u), 0.0)
        means = np.stack([np.where(inside, u, 0.0).sum(axis=-1), growth.sum(axis=-1)]) / n
        # if the tail is heavier than its power law, a cut-off only makes the fit worse
        lighter = (rate <= 1) | (means[1] < 1 / (rate - 1))
    exponent, slope, norm = np.array(rate), np.zeros(len(n)), -np.log(rate)
    solved = np.flatnonzero(lighter & (n >= 2) & np.isfinite(rate))
    if len(solved):
        exponent[solved], slope[solved], norm[solved] = _truncated_fit(
            rate[solved], means[:, solved]
        )
    other = -exponent[:, None] * u - slope[:, None] * growth - norm[:, None]
    difference = _power_law_logs(u, rate, of_logarithm=True) - other
    total = np.minimum(np.where(inside, difference, 0.0).sum(axis=-1), 0.0)
    deviation = _deviation(difference, inside)
    with np.errstate(divide="ignore", invalid="ignore"):
        normalised = np.where(total < 0, total / (deviation * np.sqrt(n)), 0.0)
    known = np.isfinite(rate) & (n >= 2)
    shape = as_floats(values).shape[:-1]
    return Ratio(
        np.where(known, normalised, np.nan).reshape(shape),
        np.where(known, chi2.sf(-2 * total, 1), np.nan).reshape(shape),
    )


def verdicts(
    fit: PowerLaw, p_value: Any, alternatives: dict[str, Ratio], *, enough: int = ENOUGH
) -> npt.NDArray[np.object_]:
    """Judge the tails, in the words of `Verdict`.

    ``undefined`` without a fit, ``too few values`` under `enough` of them, ``not a power law`` if
    the bootstrap's p-value or a comparison that is not nested is under 0.1 against it, ``truncated
    power law`` if only the cut-off fits better, else ``power law``.

    Parameters
    ----------
    fit
        Fits to the samples.
    p_value
        p-values of `bootstrap`.
    alternatives
        Ratios by name; the one called ``truncated`` counts as nested.
    enough
        Fewest values in a tail that can be judged.
    """
    words = np.full(fit.alpha.shape, Verdict.POWER_LAW.value, object)
    for name, ratio in alternatives.items():
        worse = (ratio.normalised < 0) & (ratio.p_value < SIGNIFICANT)
        words[worse & (words != Verdict.NOT)] = (
            Verdict.TRUNCATED if name == "truncated" else Verdict.NOT
        ).value
    words[as_floats(p_value) < SIGNIFICANT] = Verdict.NOT.value
    words[fit.tail_size < enough] = Verdict.TOO_FEW.value
    words[~np.isfinite(fit.alpha)] = Verdict.UNDEFINED.value
    return words


def _tail_logarithms(values: Any, fit: PowerLaw) -> tuple[Floats, npt.NDArray[np.bool_], Floats]:
    """ln(x/x_min) of the tails (samples, values), the mask of their entries, and the rates α-1."""
    x = as_floats(values)
    rows = x.reshape(-1, x.shape[-1])
    x_min = fit.x_min.reshape(-1, 1)
    inside = (rows >= x_min) & (rows > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        u = np.where(inside, np.log(np.where(inside, rows, 1.0) / x_min), 0.0)
    return u, inside, fit.alpha.reshape(-1) - 1


def _power_law_logs(u: Floats, rate: Floats, *, of_logarithm: bool = False) -> Floats:
    """Log-density at each value, of x/x_min or of its logarithm."""
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(rate)[:, None] - (rate[:, None] + (not of_logarithm)) * u
    return np.asarray(logs)


def _vuong(difference: Floats, inside: npt.NDArray[np.bool_], shape: tuple[int, ...]) -> Ratio:
    n = inside.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.where(inside, difference, 0.0).sum(axis=-1)
        normalised = total / (_deviation(difference, inside) * np.sqrt(n))
        normalised = np.where(total == 0, 0.0, normalised)
    normalised = np.where(n >= 2, normalised, np.nan)
    p_value = erfc(np.abs(normalised) / np.sqrt(2))
    return Ratio(normalised.reshape(shape), p_value.reshape(shape))


def _deviation(difference: Floats, inside: npt.NDArray[np.bool_]) -> Floats:
    n = np.maximum(inside.sum(axis=-1), 1)
    mean = np.where(inside, difference, 0.0).sum(axis=-1) / n
    squares = np.where(inside, (difference - mean[:, None]) ** 2, 0.0)
    return np.asarray(np.sqrt(squares.sum(axis=-1) / n))


_FARTHEST = 200.0


def _hazard(cut: Floats) -> Floats:
    """Density over survival of the standard normal."""
    return np.asarray(np.sqrt(2 / np.pi) / erfcx(cut / np.sqrt(2)))


def _second_moment(cut: Floats) -> Floats:
    """E[u²]/E[u]² of a standard normal beyond `cut`, u counted from there; rises from 1 to 2."""
    hazard = _hazard(cut)
    return np.asarray((1 + cut**2 - cut * hazard) / (hazard - cut) ** 2)


_MOST = float(_second_moment(np.array(_FARTHEST)))
"""Moment above which float64 cannot tell a truncated normal from an exponential."""


def _truncation(moment: Floats) -> Floats:
    """Cut at which `_second_moment` equals `moment`, by bisection over asinh(cut)."""
    low = np.full(moment.shape, -np.arcsinh(1e6))
    high = np.full(moment.shape, np.arcsinh(_FARTHEST))
    for _ in range(60):
        middle = (low + high) / 2
        below = _second_moment(np.sinh(middle)) < moment
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray(np.sinh(low))


def _truncated_fit(rate: Floats, means: Floats) -> tuple[Floats, Floats, Floats]:
    r"""Maximum likelihood of :math:`e^{-au-b(e^u-1)}` on u > 0, an exponential family in (a, b).

    Newton's method on the concave log-likelihood; steps in the logarithm keep b positive.

    Parameters
    ----------
    rate
        (samples,) a of the pure power law, the starting point.
    means
        (2, samples) means of u and of :math:`e^u-1`.

    Returns
    -------
    a, b and the logarithm of the norm.
    """
    a, log_b = np.array(rate), np.log(0.1 / means[1])
    value = _truncated_loss(a, log_b, means)[0]
    for _ in range(100):
        _, gradient, hessian, _ = _truncated_loss(a, log_b, means)
        step = np.linalg.solve(
            hessian + 1e-10 * np.trace(hessian, axis1=1, axis2=2)[:, None, None] * np.eye(2),
            gradient[..., None],
        )[..., 0]
        step *= np.minimum(1.0, 2.0 / np.abs(step).max(axis=-1).clip(1e-300))[:, None]
        for _ in range(30):  # halve steps that do not lower the loss
            trial = _truncated_loss(a - step[:, 0], log_b - step[:, 1], means)[0]
            worse = ~(trial <= value + 1e-14 * np.abs(value))
            if not worse.any():
                break
            step[worse] /= 2
        step[worse] = 0
        a, log_b = a - step[:, 0], log_b - step[:, 1]
        value = np.where(worse, value, trial)
        if np.abs(step).max() < 1e-9:
            break
    return a, np.exp(log_b), _truncated_loss(a, log_b, means)[3]


def _truncated_loss(
    a: Floats, log_b: Floats, means: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean negative log-likelihood, its gradient and Hessian in (a, log b), and the log norm."""
    b = np.exp(log_b)
    # beyond `end` the density is under e^-40 of its greatest value
    end = np.log1p((40 + 40 * np.maximum(-a, 0)) / b)
    end = np.where(a > 0, np.minimum(end, 40 / np.maximum(a, 1e-3)), end)
    u = (NODES + 1) / 2 * end[:, None]
    growth = np.expm1(u)
    exponent = -a[:, None] * u - b[:, None] * growth
    top = exponent.max(axis=-1, keepdims=True)
    mass = np.exp(exponent - top) * (WEIGHTS / 2 * end[:, None])
    total = mass.sum(axis=-1, keepdims=True)
    norm = (np.log(total) + top)[:, 0]
    mass /= total
    statistics = np.stack([u, b[:, None] * growth])  # of a and of log b
    expected = (mass * statistics).sum(axis=-1)
    centred = statistics - expected[..., None]
    covariance = np.einsum("ink,jnk,nk->nij", centred, centred, mass)
    observed = np.stack([means[0], b * means[1]])
    gradient = (observed - expected).T
    # in log b the slope adds to the curvature of the log-likelihood; left out where it is negative
    covariance[:, 1, 1] += np.maximum(gradient[:, 1], 0.0)
    return a * means[0] + b * means[1] + norm, gradient, covariance, norm

"""Is it a power law? The bootstrap, likelihood ratios and verdicts on samples of known laws."""

import numpy as np
import powerlaw
import pytest
from scipy import integrate, optimize, stats

from spectra.metrics import goodness
from spectra.metrics.tails import PowerLaw, power_law


def judged(x, replicas=100):
    fit = power_law(x)
    ratios = {
        "exponential": goodness.against_exponential(x, fit),
        "lognormal": goodness.against_lognormal(x, fit),
        "truncated": goodness.against_truncated(x, fit),
    }
    p_value = goodness.bootstrap(x, fit, replicas=replicas).p_value
    return goodness.verdicts(fit, p_value, ratios)


def tail_of(x, fit):
    return np.sort(x[x >= fit.x_min] / fit.x_min)


def test_p_values_of_true_power_laws_are_spread_evenly():
    """A test at 0.1 rejects about a tenth of them, and their median is about a half."""
    x = np.random.default_rng(0).pareto(1.5, (150, 100)) + 1
    p = goodness.bootstrap(x, power_law(x), replicas=60).p_value
    assert 0.02 < (p < 0.1).mean() < 0.2
    assert 0.35 < np.median(p) < 0.7


def test_p_values_of_another_law_are_mostly_small():
    x = np.random.default_rng(1).random((20, 2000))
    p = goodness.bootstrap(x, power_law(x), replicas=50).p_value
    assert (p < 0.1).mean() > 0.6


def test_the_bootstraps_error_counts_the_search_for_x_min():
    """It covers the truth where the standard error for a given x_min is too small."""
    x = np.random.default_rng(2).pareto(1.5, (200, 150)) + 1
    fit = power_law(x)
    error = goodness.bootstrap(x, fit, replicas=60).alpha_error
    narrow = (np.abs(fit.alpha - 2.5) < 1.96 * fit.alpha_sigma).mean()
    wide = (np.abs(fit.alpha - 2.5) < 1.96 * error).mean()
    assert wide > narrow
    assert wide > 0.9


def test_results_do_not_depend_on_the_place_in_the_batch():
    x = np.random.default_rng(3).pareto(1.5, (3, 80)) + 1
    together = goodness.bootstrap(x, power_law(x), replicas=20)
    alone = goodness.bootstrap(x[2], power_law(x[2]), replicas=20)
    assert together.p_value[2] == alone.p_value
    assert together.alpha_error[2] == alone.alpha_error


def test_the_lognormal_is_fitted_as_well_as_it_can_be():
    """Against scipy's general-purpose search over both parameters."""
    x = np.exp(np.random.default_rng(4).normal(0, 1, 500))
    fit = power_law(x, x_min=1.0)
    u = np.log(tail_of(x, fit))

    def logs(parameters):
        frozen = stats.norm(parameters[0], np.exp(parameters[1]))
        return frozen.logpdf(u) - frozen.logsf(0)

    options = {"fatol": 1e-12, "xatol": 1e-9}
    best = optimize.minimize(
        lambda parameters: -logs(parameters).sum(), [0, 0], method="Nelder-Mead", options=options
    )
    rate = fit.alpha - 1
    difference = np.log(rate) - rate * u - logs(best.x)
    expected = difference.sum() / (difference.std() * np.sqrt(len(u)))
    ratio = goodness.against_lognormal(x, fit)
    assert ratio.normalised == pytest.approx(expected, rel=1e-6)
    assert ratio.p_value == pytest.approx(2 * stats.norm.sf(abs(expected)), rel=1e-5)


def test_the_truncated_power_law_is_fitted_as_well_as_it_can_be():
    draw = np.random.default_rng(5)
    x = draw.pareto(1.0, 4000) + 1
    x = x[draw.random(len(x)) < np.exp(-0.1 * x)]
    fit = power_law(x, x_min=1.0)
    u = np.log(tail_of(x, fit))

    def loss(parameters):
        a, b = parameters[0], np.exp(parameters[1])
        norm = integrate.quad(lambda w: np.exp(-a * w - b * np.expm1(w)), 0, 12, limit=200)[0]
        return (a * u + b * np.expm1(u) + np.log(norm)).sum()

    best = optimize.minimize(loss, [1.0, -2.0], method="Nelder-Mead").fun
    own = (np.log(fit.alpha - 1) - (fit.alpha - 1) * u).sum()
    ratio = goodness.against_truncated(x, fit)
    assert ratio.p_value == pytest.approx(stats.chi2.sf(-2 * (own + best), 1), rel=1e-2)
    assert ratio.normalised < 0


@pytest.mark.parametrize("law", ["exponential", "lognormal", "truncated_power_law"])
def test_ratios_are_the_powerlaw_packages(law):
    draw = np.random.default_rng(1)
    y = draw.pareto(1.0, 2000) + 1
    x = y[draw.random(len(y)) < np.exp(-0.1 * y)]
    fit = power_law(x)
    theirs = powerlaw.Fit(x, xmin=float(fit.x_min), verbose=False)
    expected = theirs.distribution_compare("power_law", law, normalized_ratio=True)
    against = getattr(goodness, f"against_{law.removesuffix('_power_law')}")
    ratio = against(x, fit)
    assert ratio.normalised == pytest.approx(expected[0], rel=2e-3)
    assert ratio.p_value == pytest.approx(expected[1], rel=0.05, abs=1e-6)


def test_a_law_that_runs_into_the_power_law_has_a_ratio_of_zero():
    x = np.random.default_rng(1).pareto(1.5, 400) + 1
    fit = power_law(x)
    u = np.log(tail_of(x, fit))
    assert (u**2).mean() > 2 * u.mean() ** 2  # heavier than its power law
    ratio = goodness.against_lognormal(x, fit)
    assert (ratio.normalised, ratio.p_value) == (0, 1)


def test_verdicts():
    draw = np.random.default_rng(0)
    cut = draw.pareto(1.0, 4000) + 1
    cut = cut[draw.random(len(cut)) < np.exp(-0.02 * cut)][:2000]
    assert judged(draw.pareto(1.5, 800) + 1) == "power law"
    assert judged(draw.random(800) + 1) in ("not a power law", "too few values")
    assert judged(np.repeat([1.0, 2, 3, 4], 100) + draw.random(400) / 10) != "power law"
    assert judged(draw.pareto(1.5, 30) + 1) == "too few values"
    assert judged(np.zeros(50)) == "undefined"


def test_a_tail_that_only_a_cut_off_improves_is_truncated():
    one = np.array([2.0])
    fit = PowerLaw(one, one, one, one, np.array([100.0]))
    better = goodness.Ratio(np.array([-3.0]), np.array([0.001]))
    equal = goodness.Ratio(np.array([-1.0]), np.array([0.5]))
    high, low = np.array([0.5]), np.array([0.05])
    assert goodness.verdicts(fit, high, {"truncated": better}) == ["truncated power law"]
    assert goodness.verdicts(fit, low, {"truncated": better}) == ["not a power law"]
    both = {"truncated": better, "lognormal": better}
    assert goodness.verdicts(fit, high, both) == ["not a power law"]
    assert goodness.verdicts(fit, high, {"truncated": equal, "lognormal": equal}) == ["power law"]

"""Power-law fits: against a full search, the powerlaw package, and samples of known exponents."""

import numpy as np
import powerlaw
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectra.metrics.tails import hill_alpha, log_alpha_norm, power_law

WIDE = {"alpha": [1.0001, 1000.0]}
"""The powerlaw package keeps α under 3 by default."""


def full_search(x, ks="left", min_tail=3):
    """Every candidate on every value, as written in the paper."""
    x = np.sort(x[x > 0])
    best = (np.inf, np.nan, np.nan, 0)
    for x_min in np.unique(x):
        tail = x[x >= x_min]
        n = len(tail)
        if n < min_tail or tail[-1] == x_min:
            continue
        rate = n / np.log(tail / x_min).sum()
        fitted = 1 - (tail / x_min) ** -rate
        distance = np.abs(fitted - np.searchsorted(tail, tail, "left") / n).max()
        if ks == "two-sided":
            right = np.searchsorted(tail, tail, "right") / n
            distance = max(distance, np.abs(fitted - right).max())
        if distance < best[0] - 1e-14:
            best = (distance, 1 + rate, x_min, n)
    return best


def real_spectrum(shared, name):
    from safetensors.torch import load_file

    file = shared / "data/checkpoints/stories260K/model.safetensors"
    return np.linalg.svd(load_file(file)[name].double().numpy(), compute_uv=False)


SAMPLES = {
    "pareto": lambda draw, n: draw.pareto(1.5, n) + 1,
    "lognormal": lambda draw, n: np.exp(draw.normal(0, 2, n)),
    "exponential": lambda draw, n: draw.exponential(1, n),
    "ties": lambda draw, n: np.round(draw.pareto(2, n) + 1, 1),
    "uniform": lambda draw, n: draw.random(n),
}


@pytest.mark.parametrize("ks", ["left", "two-sided"])
@pytest.mark.parametrize("law", SAMPLES)
@pytest.mark.parametrize("n", [4, 30, 400])
def test_the_search_finds_what_a_full_search_finds(law, n, ks):
    for seed in range(3):
        x = SAMPLES[law](np.random.default_rng(seed), n)
        fit = power_law(x, ks=ks)
        found = (fit.ks_distance, fit.alpha, fit.x_min, fit.tail_size)
        np.testing.assert_allclose(found, full_search(x, ks), rtol=1e-9)


@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=60), st.integers(2, 5))
def test_the_search_is_full_on_any_numbers(values, min_tail):
    x = np.array(values) / 1000
    expected = full_search(x, min_tail=min_tail)
    fit = power_law(x, min_tail=min_tail)
    if np.isnan(expected[1]):
        assert np.isnan(fit.alpha)
        assert fit.tail_size == 0
    else:  # several candidates may be equally far
        assert fit.ks_distance == pytest.approx(expected[0], abs=1e-9)


@pytest.mark.parametrize("matrix", ["layers.0.self_attn.q_proj", "layers.3.mlp.down_proj"])
def test_fits_of_real_spectra_are_the_powerlaw_packages(shared, matrix):
    values = real_spectrum(shared, f"model.{matrix}.weight") ** 2
    theirs = powerlaw.Fit(values, parameter_ranges=WIDE, verbose=False)
    fit = power_law(values)
    assert fit.x_min == theirs.xmin
    assert fit.alpha == pytest.approx(theirs.alpha, rel=1e-6)
    assert fit.alpha_sigma == pytest.approx(theirs.power_law.standard_err, rel=1e-6)
    assert fit.ks_distance == pytest.approx(theirs.D, rel=1e-6)
    assert fit.tail_size == len(theirs.data)


def test_the_powerlaw_packages_cap_on_alpha_is_not_ours():
    """Its version 2 keeps α under 3 unless told otherwise; the true α here is 4."""
    x = np.random.default_rng(0).pareto(3.0, 300) + 1
    capped = powerlaw.Fit(x, verbose=False)
    fit = power_law(x)
    assert capped.alpha < 3
    assert capped.xmin != fit.x_min
    assert fit.alpha == pytest.approx(4, abs=4 * float(fit.alpha_sigma))


@pytest.mark.parametrize("alpha", [1.5, 2.5, 4.0, 8.0])
def test_exponents_of_pareto_samples_are_recovered_within_the_stated_error(alpha):
    """With x_min known, intervals of 1.96 σ cover the truth in 95 % of 2000 samples."""
    draw = np.random.default_rng(int(10 * alpha))
    x = draw.pareto(alpha - 1, (2000, 200)) + 1
    fit = power_law(x, x_min=1.0)
    np.testing.assert_array_equal(fit.tail_size, 200)
    covered = np.abs(fit.alpha - alpha) < 1.96 * fit.alpha_sigma
    assert 0.93 < covered.mean() < 0.97


def test_the_tails_of_many_samples_are_those_of_each():
    draw = np.random.default_rng(3)
    x = draw.pareto(2.0, (3, 5, 90))
    x[1, 2, 40:] = np.nan
    x[2, 0] = 0
    together = power_law(x)
    for place in np.ndindex(3, 5):
        one = power_law(x[place])
        for a, b in zip(together, one, strict=True):
            np.testing.assert_equal(a[place], b)


def test_an_x_min_that_is_given_is_kept():
    x = np.array([1.0, 2, 4, 8, 16])
    fit = power_law(x, x_min=2.0)
    assert fit.tail_size == 4
    assert fit.alpha == pytest.approx(1 + 4 / np.log([1, 2, 4, 8]).sum())
    between = power_law(x, x_min=3.0)
    assert (between.tail_size, between.x_min) == (3, 3.0)
    assert between.alpha == pytest.approx(1 + 3 / np.log(x[2:] / 3).sum())


@pytest.mark.parametrize(
    "nothing", [[], [0.0, 0.0], [1.0], [2.0] * 9, [np.nan] * 4, [-1.0, -2, -3]]
)
def test_where_there_is_no_tail_there_is_no_exponent(nothing):
    fit = power_law(np.array(nothing, float))
    assert np.isnan(fit.alpha)
    assert np.isnan(fit.x_min)
    assert np.isnan(fit.ks_distance)
    assert fit.tail_size == 0
    assert np.isnan(hill_alpha(np.array(nothing, float)))


def test_hill_takes_a_fixed_share():
    x = np.array([16.0, 8, 4, 2, 1, 1])
    assert hill_alpha(x) == pytest.approx(1 + 3 / np.log([4, 2, 1]).sum())
    draw = np.random.default_rng(0)
    many = hill_alpha(draw.pareto(1.5, (50, 4000)) + 1)
    assert many.mean() == pytest.approx(2.5, abs=0.02)


def test_powers_of_large_eigenvalues_do_not_overflow():
    s = np.linspace(1e6, 1, 16_384)
    direct = 2 * 30 * np.log10(s[0]) + np.log10(((s / s[0]) ** 60).sum())
    assert log_alpha_norm(30.0, s) == pytest.approx(direct)


def test_tensors_are_taken_too():
    x = np.random.default_rng(0).pareto(1.5, 50) + 1
    assert power_law(torch.from_numpy(x)).alpha == power_law(x).alpha


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="two-sided"):
        power_law([1.0, 2.0], ks="right")
    with pytest.raises(ValueError, match="at least 2"):
        power_law([1.0, 2.0], min_tail=1)

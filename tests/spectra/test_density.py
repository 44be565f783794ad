"""Approximate spectra: values within their error bars, whatever the matrix."""

import numpy as np
import pytest
import torch

from spectra.density import EXACT_SIDE, approximate_singular_values
from tests.spectra.families import families

QUICK = ("normal", "power 0.5", "rank 10", "equal", "heavy", "sparse", "columns outlying", "graded")


def shares(rows, cols, seed, kinds=()):
    """By kind, the share of values within two of their errors, and the median error."""
    for kind, matrix in families(rows, cols, np.random.default_rng(seed)):
        if kinds and kind not in kinds:
            continue
        exact = np.linalg.svd(matrix.astype(np.float32).astype(np.float64), compute_uv=False)
        values, errors = approximate_singular_values(torch.from_numpy(matrix).float(), seed=seed)
        assert (np.diff(values) <= 0).all()
        assert values[-1] >= 0
        yield kind, float((np.abs(values - exact) <= 2 * errors).mean()), errors / exact[0]


def test_nine_in_ten_values_lie_within_two_errors():
    found = {kind: (share, errors) for kind, share, errors in shares(530, 600, 0, QUICK)}
    assert {kind: share for kind, (share, _) in found.items() if share < 0.9} == {}
    # and bars say something: those of the bulk, of leading values, and of what is nothing
    assert np.median(found["normal"][1]) < 0.02
    assert found["power 0.5"][1][:10].max() < 1e-6
    assert np.median(found["rank 10"][1]) < 1e-3
    assert np.median(found["equal"][1]) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("shape", [(600, 600), (560, 900), (1400, 530), (1024, 1024)])
def test_of_every_kind_nine_in_ten_values_lie_within_two_errors(shape, seed):
    assert {kind: share for kind, share, _ in shares(*shape, seed) if share < 0.9} == {}


@pytest.mark.parametrize("kind", ["bulk", "power law"])
def test_an_approximation_is_near_and_repeats_itself(kind):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((700, 900))
    if kind == "power law":
        u, _, vt = np.linalg.svd(x, full_matrices=False)
        x = u * np.arange(1, 701) ** -0.7 @ vt
    exact = np.linalg.svd(x, compute_uv=False)
    values, _ = approximate_singular_values(torch.from_numpy(x))
    assert np.abs(values - exact).max() < 0.05 * exact[0]
    np.testing.assert_allclose(values[:3], exact[:3], rtol=1e-2)
    again, _ = approximate_singular_values(torch.from_numpy(x), seed=0)
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("kind", ["rank one", "rank five", "square", "exponential", "equal"])
@pytest.mark.parametrize("scale", [1e-300, 1e-60, 1.0, 1e60, 1e300])
def test_approximation_at_any_scale(kind, scale):
    index = np.arange(700)
    exact = {
        "rank one": np.where(index < 1, 1.0, 0.0),
        "rank five": np.where(index < 5, 5.0 - index, 0.0),
        "square": (index + 1.0) ** -2,
        "exponential": np.exp(-index / 3),
        "equal": np.ones(700),
    }[kind]
    draw = np.random.default_rng(0)
    u, _ = np.linalg.qr(draw.standard_normal((700, 700)))
    v, _ = np.linalg.qr(draw.standard_normal((900, 700)))
    values, errors = approximate_singular_values(torch.from_numpy(scale * ((u * exact) @ v.T)))
    np.testing.assert_allclose(values[:3] / scale, exact[:3], atol=2e-3 * exact[0])
    assert np.square(values / scale).sum() == pytest.approx(np.square(exact).sum(), rel=5e-3)
    assert (np.abs(values / scale - exact) <= 2 * errors / scale).mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_ends_of_every_dtype_can_be_approximated(dtype):
    for scale in (torch.finfo(dtype).max, torch.finfo(dtype).tiny):
        matrix = torch.full((600, 520), scale, dtype=dtype)
        values, errors = approximate_singular_values(matrix)
        assert values[0] == pytest.approx(float(scale) * (600 * 520) ** 0.5, rel=1e-5)
        assert (values[1:] <= 2 * errors[1:]).all()


def test_approximation_of_small_and_of_strange_matrices():
    small = torch.randn(EXACT_SIDE, 600)
    values, errors = approximate_singular_values(small)
    np.testing.assert_allclose(values, torch.linalg.svdvals(small.double()), rtol=1e-9)
    assert not errors.any()
    assert not approximate_singular_values(torch.zeros(600, 600))[0].any()
    spoilt = torch.randn(600, 600)
    for broken in (torch.inf, torch.nan):
        spoilt[0, 0] = broken
        assert np.isnan(approximate_singular_values(spoilt)[0]).all()

"""The random-matrix bulk: laws against simulation, and spikes that were planted."""

import numpy as np
import pytest
from scipy import integrate

from spectra.metrics import bulk

SHAPES = [(1, 1), (1, 20), (2, 2), (3, 40), (8, 8), (16, 100), (32, 32), (64, 172), (128, 128)]


def noise(rows, cols, draws, first=0):
    """Spectra of pure Gaussian noise."""
    return np.stack(
        [bulk.random_spectrum(rows, cols, seed=10**7 + first + i) for i in range(draws)]
    )


def dense_noise(rows, cols, seed, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((rows, cols))


@pytest.mark.parametrize("shape", [(5, 5), (20, 60)])
def test_random_spectra_follow_the_law_of_dense_gaussian_matrices(shape):
    dense = np.random.default_rng(0).standard_normal((3000, *shape))
    ours = noise(*shape, 3000)
    theirs = np.linalg.svd(dense, compute_uv=False)
    for index in (0, len(theirs[0]) // 2, -1):
        np.testing.assert_allclose(
            np.quantile(ours[:, index], [0.1, 0.5, 0.9]),
            np.quantile(theirs[:, index], [0.1, 0.5, 0.9]),
            rtol=0.05,
            atol=0.02,
        )
    np.testing.assert_allclose((ours**2).sum(-1).mean(), shape[0] * shape[1], rtol=0.02)


@pytest.mark.parametrize("level", [0.01, pytest.param(0.1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", SHAPES)
def test_pure_noise_shows_a_spike_no_more_often_than_stated(shape, level):
    draws = 3000
    share = (bulk.mp_spikes(noise(*shape, draws), *shape, level=level) > 0).mean()
    assert share < level + 3.5 * np.sqrt(level * (1 - level) / draws)
    if min(shape) >= 32:  # and not by never showing any
        assert share > level / 2


def test_noise_that_is_not_gaussian_shows_no_more():
    draw = np.random.default_rng(0)
    signs = np.sign(draw.standard_normal((600, 48, 96)))
    s = np.linalg.svd(signs, compute_uv=False)
    assert (bulk.mp_spikes(s, 48, 96, level=0.05) > 0).mean() < 0.08


@pytest.mark.parametrize("planted", [1, 3, 10])
def test_planted_spikes_are_counted(planted):
    rows, cols = 200, 300
    x = dense_noise(rows, cols, planted)
    basis = np.linalg.qr(dense_noise(rows, planted, 1))[0]
    other = np.linalg.qr(dense_noise(cols, planted, 2))[0]
    x += basis * np.linspace(60, 80, planted) @ other.T
    s = np.linalg.svd(x, compute_uv=False)
    assert bulk.mp_spikes(s, rows, cols) == planted
    assert bulk.optimal_rank(s, rows, cols) == planted
    assert bulk.noise_scale(s, rows, cols) == pytest.approx(1, rel=0.05)
    assert bulk.mp_soft_rank(s, rows, cols) < 0.3


@pytest.mark.parametrize("shape", [(100, 100), (60, 400), (400, 60)])
def test_the_edge_and_the_scale_of_noise(shape):
    s = np.linalg.svd(dense_noise(*shape, 0, scale=0.02), compute_uv=False)
    assert bulk.noise_scale(s, *shape) == pytest.approx(0.02, rel=0.03)
    edge = (0.02 * (np.sqrt(shape[0]) + np.sqrt(shape[1]))) ** 2
    assert bulk.mp_edge(s, *shape) == pytest.approx(edge, rel=0.06)
    assert bulk.mp_soft_rank(s, *shape) == pytest.approx(1, abs=0.1)
    assert bulk.random_distance(s, *shape) < 0.03


def test_a_rank_one_matrix_is_one_spike_without_noise():
    s = np.array([5.0, 0, 0, 0])
    assert bulk.mp_edge(s, 4, 6) == 0
    assert bulk.mp_spikes(s, 4, 6) == 1
    assert bulk.mp_soft_rank(s, 4, 6) == 0
    assert bulk.optimal_rank(s, 4, 6) == 1
    assert 0.3 < bulk.random_distance(s, 4, 6) <= np.sqrt(np.log(2))


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.1, 0.01])
def test_the_median_of_the_marchenko_pastur_law_halves_it(beta):
    low, high = (1 - np.sqrt(beta)) ** 2, (1 + np.sqrt(beta)) ** 2
    median = bulk.marchenko_pastur_median(beta)
    density = lambda x: np.sqrt(max((high - x) * (x - low), 0)) / (2 * np.pi * beta * x)  # noqa: E731
    assert integrate.quad(density, median, high, limit=300)[0] == pytest.approx(0.5, abs=1e-6)


def test_known_constants():
    """Gavish and Donoho's 2.858 for square matrices; Bejan's table of the Tracy-Widom law."""
    s = np.linspace(1, 0, 1001)
    threshold = bulk.optimal_rank(np.r_[2.859, 2.857, np.ones(997)], 999, 999)
    assert threshold == 1
    assert bulk.optimal_rank(s, 1001, 1001) == 0
    assert bulk.tracy_widom_survival(0.9793) == pytest.approx(0.05, rel=0.01)
    assert bulk.tracy_widom_survival(2.0234) == pytest.approx(0.01, rel=0.03)


def test_a_spectrum_flatter_than_noise_has_a_soft_rank_over_one():
    most = 4 / bulk.marchenko_pastur_median(1.0)
    assert bulk.mp_soft_rank(np.ones(64), 64, 64) == pytest.approx(most)


def test_the_random_matrix_is_seeded():
    s = np.linalg.svd(dense_noise(30, 40, 0), compute_uv=False)
    assert bulk.random_distance(s, 30, 40, seed=1) == bulk.random_distance(s, 30, 40, seed=1)
    assert bulk.random_distance(s, 30, 40, seed=1) != bulk.random_distance(s, 30, 40, seed=2)


def test_a_level_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match="must be in"):
        bulk.mp_spikes(np.ones(3), 3, 3, level=0.9)

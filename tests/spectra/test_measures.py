"""What holds for every measure: scale, padding, precision, and matrices without an answer."""

import numpy as np
import pytest
import torch

import spectra
from spectra.metrics.measures import MEASURES, measures

INVARIANT = [name for name, measure in MEASURES.items() if not measure.grows_with_scale]


def heavy(rows=60, cols=90, seed=0):
    """A matrix with a heavy tail above noise."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((rows, cols))
    u = np.linalg.qr(draw.standard_normal((rows, 20)))[0]
    v = np.linalg.qr(draw.standard_normal((cols, 20)))[0]
    return x + u * (30 * np.arange(1, 21) ** -0.7) @ v.T


def values(matrix, **options):
    s = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    return measures(s, *matrix.shape, replicas=10, **options)


def test_every_measure_is_described_and_there():
    assert list(MEASURES) == list(values(heavy()))
    for measure in MEASURES.values():
        assert measure.long_name


@pytest.mark.parametrize("scale", [1e-8, 1e8, 3e-30])
def test_scale_changes_norms_alone(scale):
    one, other = values(heavy()), values(heavy() * scale)
    for name in INVARIANT:
        if name == "verdict":
            assert one[name] == other[name]
        else:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-7, err_msg=name)
    for name in ("spectral_norm", "frobenius_norm", "nuclear_norm", "noise_scale"):
        np.testing.assert_allclose(other[name], one[name] * scale, rtol=1e-9)
    for name in ("x_min", "mp_edge", "spike_threshold"):
        np.testing.assert_allclose(other[name], one[name] * scale**2, rtol=1e-9)
    shift = 2 * np.log10(scale) * one["alpha"]
    np.testing.assert_allclose(other["alpha_weighted"], one["alpha_weighted"] + shift, rtol=1e-9)
    np.testing.assert_allclose(other["log_alpha_norm"], one["log_alpha_norm"] + shift, rtol=1e-9)


def test_padding_changes_nothing():
    s = np.linalg.svd(heavy(), compute_uv=False)
    padded = np.concatenate([s, np.full(40, np.nan)])
    one, other = measures(s, 60, 90, replicas=10), measures(padded, 60, 90, replicas=10)
    for name in MEASURES:
        if name == "verdict":
            assert other[name] == one[name]
        else:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-12, err_msg=name)


def test_a_zero_matrix():
    table = measures(np.zeros(5), 5, 9, replicas=10)
    for name in ("spectral_norm", "frobenius_norm", "nuclear_norm", "stable_rank", "mp_spikes"):
        assert table[name] == 0
    for name in ("effective_rank", "participation_ratio", "energy_rank_90", "numerical_rank"):
        assert table[name] == 0
    for name in ("mp_edge", "spike_threshold", "optimal_rank", "tail_size", "noise_scale"):
        assert table[name] == 0
    for name in ("spectral_entropy", "alpha", "x_min", "ks_distance", "hill_alpha"):
        assert np.isnan(table[name])
    for name in ("mp_soft_rank", "random_distance", "p_value", "lognormal_ratio"):
        assert np.isnan(table[name])
    assert table["verdict"] == "undefined"


def test_a_matrix_of_rank_one():
    s = np.zeros(6)
    s[0] = 7
    table = measures(s, 6, 9, replicas=10)
    for name in ("stable_rank", "effective_rank", "participation_ratio", "mp_spikes"):
        assert table[name] == 1
    for name in ("energy_rank_99", "numerical_rank", "optimal_rank"):
        assert table[name] == 1
    for name in ("spectral_entropy", "tail_size", "mp_edge", "mp_soft_rank"):
        assert table[name] == 0
    assert np.isnan(table["alpha"])
    assert table["verdict"] == "undefined"


def test_rounding_does_not_count():
    """A computed rank-one matrix has values of 1e-9 of the first in place of zeros."""
    draw = np.random.default_rng(0)
    x = np.outer(draw.standard_normal(50), draw.standard_normal(80)).astype(np.float32)
    s = spectra.singular_values(x)
    assert (s[1:] > 0).any()
    table = measures(s, 50, 80)
    assert table["numerical_rank"] == table["mp_spikes"] == table["optimal_rank"] == 1
    assert table["tail_size"] == table["mp_edge"] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_matrix_that_is_not_finite_has_no_measures(bad):
    x = heavy().astype(np.float32)
    x[3, 4] = bad
    table = measures(spectra.singular_values(x), 60, 90, replicas=10)
    for name in MEASURES:
        if name == "verdict":
            assert table[name] == "undefined"
        else:
            assert np.isnan(table[name]), name


def test_one_missing_spectrum_leaves_the_others_alone():
    s = np.linalg.svd(heavy(), compute_uv=False)
    batch = np.stack([s, np.full_like(s, np.nan), np.zeros_like(s), s])
    table = measures(batch, 60, 90, replicas=10)
    alone = measures(s, 60, 90, replicas=10)
    for name in MEASURES:
        for i in (0, 3):
            np.testing.assert_equal(table[name][i], alone[name], err_msg=name)


def test_nothing_overflows_at_16_384_values():
    s = np.sqrt(np.random.default_rng(0).pareto(1.2, 16_384) + 1) * 1e6
    table = measures(np.sort(s)[::-1].copy(), 16_384, 16_384)
    for name, value in table.items():
        assert np.isfinite(value), name
    assert table["alpha"] == pytest.approx(2.2, abs=0.1)


NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PLACES = [
    ("cpu", torch.float32),
    ("cpu", torch.bfloat16),
    pytest.param("cuda", torch.float32, marks=NO_CUDA),
]


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_precisions_and_devices_agree(device, dtype):
    """The decomposition is float64 on each; only what the matrix is kept in differs."""
    exact = torch.from_numpy(heavy(200, 300)).to(dtype)
    reference = measures(spectra.singular_values(exact.double()), 200, 300)
    found = measures(spectra.singular_values(exact.to(device)), 200, 300)
    for name in reference:
        np.testing.assert_allclose(found[name], reference[name], rtol=1e-6, err_msg=name)


def test_what_the_store_keeps_in_float32_is_enough():
    """Spectra rounded to float32, as stored, give every measure to about 1e-5."""
    s = np.linalg.svd(heavy(200, 300), compute_uv=False)
    exact, stored = measures(s, 200, 300), measures(s.astype(np.float32), 200, 300)
    for name in exact:
        np.testing.assert_allclose(stored[name], exact[name], rtol=1e-5, err_msg=name)


def test_progress_ends_with_everything_done():
    seen = []
    s = np.ones((40, 3))
    measures(s, 3, 3, replicas=1, progress=lambda *counts: seen.append(counts))
    assert seen == [(16, 40), (32, 40), (40, 40)]

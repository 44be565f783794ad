"""Norms and ranks on spectra whose answers are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectra.metrics import ranks

IDENTITY = np.ones(8)
RANK_ONE = np.array([3.0, 0, 0, 0])
HALVES = np.array([4.0, 2, 1])
spectra_of_any_kind = st.lists(st.floats(1e-6, 1e6, allow_nan=False), min_size=1, max_size=30).map(
    lambda values: np.sort(values)[::-1].copy()
)


def test_an_identity_uses_all_of_its_directions():
    assert ranks.stable_rank(IDENTITY) == 8
    assert ranks.effective_rank(IDENTITY) == pytest.approx(8)
    assert ranks.participation_ratio(IDENTITY) == 8
    assert ranks.energy_rank(IDENTITY, 0.9) == 8  # 7 of 8 hold 0.875
    assert ranks.energy_rank(IDENTITY, 0.875) == 7
    assert ranks.numerical_rank(IDENTITY, 8, 8) == 8
    assert ranks.spectral_entropy(IDENTITY) == pytest.approx(1)
    assert ranks.rank_one_residual(IDENTITY) == pytest.approx(7 / 8)


def test_a_matrix_of_rank_one_has_ranks_one_and_no_entropy():
    for rank in (ranks.stable_rank, ranks.effective_rank, ranks.participation_ratio):
        assert rank(RANK_ONE) == 1
    assert ranks.energy_rank(RANK_ONE, 0.99) == 1
    assert ranks.numerical_rank(RANK_ONE, 4, 9) == 1
    assert ranks.spectral_entropy(RANK_ONE) == 0
    assert ranks.rank_one_residual(RANK_ONE) == 0


def test_values_by_hand():
    assert ranks.spectral_norm(HALVES) == 4
    assert ranks.nuclear_norm(HALVES) == 7
    assert ranks.frobenius_norm(HALVES) == pytest.approx(np.sqrt(21))
    assert ranks.stable_rank(HALVES) == pytest.approx(21 / 16)
    assert ranks.participation_ratio(HALVES) == pytest.approx(21**2 / (256 + 16 + 1))
    p = HALVES / 7
    assert ranks.effective_rank(HALVES) == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    q = HALVES**2 / 21
    expected = -(q * np.log(q)).sum() / np.log(3)
    assert ranks.spectral_entropy(HALVES) == pytest.approx(expected)
    assert ranks.energy_rank(HALVES, 16 / 21) == 1
    assert ranks.rank_one_residual(HALVES) == pytest.approx(5 / 21)


@given(spectra_of_any_kind)
def test_ranks_are_in_their_order_and_range(s):
    """Stable rank and participation ratio never exceed the effective rank, nor that the count."""
    stable, effective = ranks.stable_rank(s), ranks.effective_rank(s)
    participation = ranks.participation_ratio(s)
    assert 1 <= stable <= effective * (1 + 1e-9)
    assert 1 - 1e-12 <= participation <= effective * (1 + 1e-9)
    assert effective <= len(s) * (1 + 1e-9)
    assert 1 <= ranks.energy_rank(s, 0.5) <= ranks.energy_rank(s, 0.99) <= len(s)
    assert 0 <= ranks.spectral_entropy(s) <= 1 + 1e-12


def test_the_numerical_rank_is_numpys():
    draw = np.random.default_rng(0)
    x = (draw.standard_normal((40, 7)) @ draw.standard_normal((7, 60))).astype(np.float32)
    s = np.linalg.svd(x, compute_uv=False)
    assert ranks.numerical_rank(s, 40, 60) == np.linalg.matrix_rank(x) == 7


def test_a_share_of_the_energy_is_a_share():
    with pytest.raises(ValueError, match="share"):
        ranks.energy_rank(HALVES, 90)

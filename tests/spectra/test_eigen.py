"""Eigensystems against LAPACK's full decomposition, for any count of leading vectors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectra import eigen
from spectra.eigen import Reflectors, eigensystem, folded, from_tensors, unfolded


def symmetric(side, rank=None, decay=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rank = side if rank is None else rank
    x = torch.randn(side, rank, generator=generator, dtype=torch.float64)
    x = x * torch.arange(1, rank + 1) ** -decay
    return x @ x.mT


def lost(p, vectors):
    """What the projection onto vectors leaves out of the trace."""
    return float(p.trace() - torch.trace(vectors.mT @ p @ vectors))


@pytest.mark.parametrize("side", [2, 3, 4, 5, 127, 128, 129, 301, 1030])
@pytest.mark.parametrize("kind", ["full rank", "low rank", "identity", "zero"])
def test_the_leading_vectors_leave_out_the_least(side, kind):
    p = {
        "full rank": lambda: symmetric(side),
        "low rank": lambda: symmetric(side, rank=max(side // 3, 1)),
        "identity": lambda: torch.eye(side, dtype=torch.float64),
        "zero": lambda: torch.zeros(side, side, dtype=torch.float64),
    }[kind]()
    values = torch.linalg.eigvalsh(p).flip(-1)
    found = Reflectors.of(p.clone().numpy())
    torch.testing.assert_close(found.values, values, rtol=0, atol=1e-12 * float(values[0]))
    for count in {1, side // 2, side}:
        vectors = found.leading(count)
        torch.testing.assert_close(
            vectors.mT @ vectors, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-11
        )
        assert lost(p, vectors) <= float(values[count:].sum()) + 1e-11 * float(values.sum())


def test_large_sides_are_reduced_and_small_ones_decomposed_at_once():
    assert isinstance(eigensystem(symmetric(200)), Reflectors)
    small = symmetric(20)
    found = eigensystem(small.clone())
    assert lost(small, found.leading(5)) == pytest.approx(float(found.values[5:].sum()))


def test_only_the_upper_half_is_read():
    for side in (20, 200):
        p = symmetric(side)
        found = eigensystem(p.triu() + 7.0 * torch.ones(side, side).tril(-1))
        torch.testing.assert_close(found.values, torch.linalg.eigvalsh(p).flip(-1))


def test_vectors_are_nested():
    found = Reflectors.of(symmetric(300).numpy())
    whole = found.leading(300)
    for count in (1, 7, 150):
        some = found.leading(count)
        overlap = (whole[:, :count] * some).sum(dim=0).abs()
        torch.testing.assert_close(overlap, torch.ones(count, dtype=torch.float64))


@pytest.mark.parametrize("side", [50, 200, 1030])
def test_what_is_written_gives_the_same_vectors(side):
    found = eigensystem(symmetric(side))
    read = from_tensors({name: value.clone() for name, value in found.tensors.items()})
    assert torch.equal(read.values, found.values)
    assert torch.equal(read.leading(20), found.leading(20))


def test_large_reflectors_take_a_quarter_of_the_matrix():
    p = symmetric(1100)
    size = p.numel() * 8
    held = sum(t.numel() * t.element_size() for t in eigensystem(p).tensors.values())
    assert held < 0.26 * size


def test_vectors_that_are_not_orthogonal_are_computed_in_another_way(monkeypatch):
    p = symmetric(200)
    found = Reflectors.of(p.clone().numpy())
    real = eigen.eigh_tridiagonal

    def careless(*arguments, lapack_driver, **options):
        values, vectors = real(*arguments, lapack_driver=lapack_driver, **options)
        if lapack_driver == "stemr":
            vectors[:, 0] = vectors[:, 1]
        return values, vectors

    monkeypatch.setattr(eigen, "eigh_tridiagonal", careless)
    vectors = found.leading(30)
    assert lost(p, vectors) == pytest.approx(float(found.values[30:].sum()), rel=1e-6)


@given(st.integers(1, 9))
def test_folding_keeps_the_lower_half(side):
    lower = np.tril(np.random.default_rng(side).standard_normal((side, side)))
    packed = folded(lower, np.float64)
    assert packed.size <= (side + 1) ** 2 / 2
    np.testing.assert_array_equal(unfolded(packed, side), lower)

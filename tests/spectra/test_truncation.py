"""Truncations against the least error that there can be, and against independent formulas."""

import numpy as np
import pytest
import scipy.linalg
import torch

from spectra.compression.leading import leading_factors
from spectra.compression.truncation import Root, covariance_root, scale_root, truncate
from spectra_data.errors import InputError


def some(rows, cols, seed=0, decay=0.5):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, cols + 1, dtype=torch.float64) ** -decay
    return torch.randn(rows, cols, generator=generator, dtype=torch.float64) * scale


def inputs_of(cols, tokens, seed=1):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, cols, generator=generator, dtype=torch.float64)
    return torch.randn(tokens, cols, generator=generator, dtype=torch.float64) @ mix


def test_the_plain_truncation_is_that_of_the_decomposition():
    w = some(20, 14)
    u, s, vh = np.linalg.svd(w.numpy(), full_matrices=False)
    factors = truncate(w, 5)
    np.testing.assert_allclose(factors.product(), (u[:, :5] * s[:5]) @ vh[:5], atol=1e-12)
    # the paper's factors: the square root of the singular values on either side
    np.testing.assert_allclose(factors.left.mT @ factors.left, np.diag(s[:5]), atol=1e-12)
    np.testing.assert_allclose(factors.right @ factors.right.mT, np.diag(s[:5]), atol=1e-12)


def test_whitening_loses_on_the_data_exactly_what_it_cuts_off():
    w, x = some(12, 18), inputs_of(18, 200)
    root = covariance_root(x.mT @ x, floor=0.0)
    values = torch.linalg.svdvals(w @ x.mT)
    for rank in (1, 6, 11):
        product = truncate(w, rank, inputs=root).product()
        lost = torch.linalg.norm((w - product) @ x.mT)
        torch.testing.assert_close(lost, values[rank:].norm())
        plain = truncate(w, rank).product()
        assert lost < torch.linalg.norm((w - plain) @ x.mT)


def test_whitening_agrees_with_the_cholesky_of_svd_llm():
    w, x = some(12, 18), inputs_of(18, 200)
    s = np.linalg.cholesky((x.mT @ x).numpy())
    u, values, vh = np.linalg.svd(w.numpy() @ s, full_matrices=False)
    wanted = (u[:, :4] * values[:4]) @ vh[:4] @ np.linalg.inv(s)
    ours = truncate(w, 4, inputs=covariance_root(x.mT @ x)).product()
    np.testing.assert_allclose(ours, wanted, atol=1e-9)


def test_weights_on_both_sides_give_the_least_error_under_both():
    w, x, g = some(12, 18), inputs_of(18, 200), inputs_of(12, 150, seed=2)
    inputs, outputs = covariance_root(x.mT @ x), covariance_root(g.mT @ g)
    product = truncate(w, 4, inputs=inputs, outputs=outputs).product()

    def lost(candidate):
        c, h = (x.mT @ x).numpy(), (g.mT @ g).numpy()
        d = (w - candidate).numpy()
        return np.trace(h @ d @ c @ d.T)

    values = np.linalg.svd(
        scipy.linalg.sqrtm((g.mT @ g).numpy()).real
        @ w.numpy()
        @ scipy.linalg.sqrtm((x.mT @ x).numpy()).real,
        compute_uv=False,
    )
    np.testing.assert_allclose(lost(product), np.square(values[4:]).sum(), rtol=1e-8)
    for other in (truncate(w, 4), truncate(w, 4, inputs=inputs), truncate(w, 4, outputs=outputs)):
        assert lost(product) < lost(other.product())


def test_asvd_scales_columns_by_the_root_of_the_mean_magnitude():
    w, x = some(12, 18), inputs_of(18, 200)
    magnitude = x.abs().mean(dim=0)
    scale = np.sqrt(magnitude.numpy())
    u, s, vh = np.linalg.svd(w.numpy() * scale, full_matrices=False)
    wanted = (u[:, :3] * s[:3]) @ vh[:3] / scale
    np.testing.assert_allclose(
        truncate(w, 3, inputs=scale_root(magnitude)).product(), wanted, atol=1e-10
    )


def test_features_that_are_never_on_do_no_harm():
    w, x = some(12, 18), inputs_of(18, 200)
    x[:, 3:6] = 0
    for root in (covariance_root(x.mT @ x), scale_root(x.abs().mean(dim=0))):
        product = truncate(w, 6, inputs=root).product()
        assert torch.isfinite(product).all()
        assert torch.linalg.norm((w - product) @ x.mT) < torch.linalg.norm(w @ x.mT)


def test_a_covariance_that_is_not_positive_definite_has_a_root_where_cholesky_has_none():
    x = inputs_of(30, 10)  # fewer tokens than features
    c = x.mT @ x
    c -= 1e-9 * c.diagonal().max() * torch.eye(30, dtype=c.dtype)
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(c.numpy())
    root = covariance_root(c)
    torch.testing.assert_close(root.root @ root.inverse, torch.eye(30, dtype=c.dtype))
    torch.testing.assert_close(root.root @ root.root.mT, c, atol=1e-6 * float(c.max()), rtol=0)


def test_shrinkage_moves_a_covariance_towards_the_identity_of_its_trace():
    c = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    root = covariance_root(c, shrinkage=0.5)
    torch.testing.assert_close(
        root.root @ root.root.mT, torch.diag(torch.tensor([1.5, 2.5])).double()
    )


@pytest.mark.parametrize(
    ("rows", "cols", "rank", "decay"),
    [(1100, 1300, 300, 0.5), (1300, 1100, 80, 0.5), (1100, 1100, 60, 0.1), (1024, 1030, 1024, 0.5)],
)
def test_large_matrices_lose_hardly_more_than_they_must(rows, cols, rank, decay):
    w = some(rows, cols, decay=decay).float()
    values = torch.linalg.svdvals(w.double()).square()
    factors = leading_factors(w, rank)
    lost = float((w - factors.product()).double().square().sum())
    least = float(values[rank:].sum())
    assert lost <= 1.003 * least + 1e-9 * float(values.sum())
    heavy = factors.left.double().square().sum(dim=0)
    torch.testing.assert_close(heavy, factors.right.double().square().sum(dim=1), rtol=1e-3, atol=0)


def test_the_same_matrix_gives_the_same_factors():
    w = some(1100, 1030).float()
    for rank in (50, 300):
        one, other = leading_factors(w, rank), leading_factors(w, rank)
        assert torch.equal(one.left, other.left)
        assert torch.equal(one.right, other.right)


def test_what_is_not_finite_is_refused():
    w = some(6, 6)
    w[0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        truncate(w, 2)
    with pytest.raises(InputError, match="covariance is not finite"):
        covariance_root(w)
    broken = Root(torch.full((6,), torch.inf), torch.ones(6))
    with pytest.raises(InputError, match="not finite"):
        truncate(some(6, 6), 2, inputs=broken)


def test_a_zero_matrix_has_zero_factors():
    assert not truncate(torch.zeros(8, 5), 3).product().any()
    assert not leading_factors(torch.zeros(1100, 1100), 20).product().any()

"""Truncations against the least error that there can be, and against independent formulas."""

import numpy as np
import pytest
import scipy.linalg
import torch

from spectra.compression.leading import leading_factors
from spectra.compression.truncation import Root, covariance_root, decompose, scale_root
from spectra.compression.weighting import Plain
from spectra_data.errors import InputError


def some(rows, cols, seed=0, decay=0.5):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, cols + 1, dtype=torch.float64) ** -decay
    return torch.randn(rows, cols, generator=generator, dtype=torch.float64) * scale


def inputs_of(cols, tokens, seed=1):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, cols, generator=generator, dtype=torch.float64)
    return torch.randn(tokens, cols, generator=generator, dtype=torch.float64) @ mix


def short_sides(weight, inputs=None, outputs=None):
    """The decomposition of a weight over either side, for covariances of inputs and outputs."""
    w = weight.double()
    c = torch.eye(w.shape[1], dtype=w.dtype) if inputs is None else inputs
    g = torch.eye(w.shape[0], dtype=w.dtype) if outputs is None else outputs
    rows = None if outputs is None else covariance_root(outputs)
    cols = None if inputs is None else covariance_root(inputs)
    return (
        decompose(w @ c @ w.mT, rows, of_outputs=True),
        decompose(w.mT @ g @ w, cols, of_outputs=False),
    )


def lost(difference, c, g):
    """Squared error of a matrix under covariances of its inputs and outputs."""
    d = difference.numpy()
    return float(np.trace(g.numpy() @ d @ c.numpy() @ d.T))


def test_the_plain_truncation_is_that_of_the_decomposition():
    w = some(20, 14)
    u, s, vh = np.linalg.svd(w.numpy(), full_matrices=False)
    factors = Plain().truncated(w, 5)
    np.testing.assert_allclose(factors.product(), (u[:, :5] * s[:5]) @ vh[:5], atol=1e-12)
    # the paper's factors: the square root of the singular values on either side
    np.testing.assert_allclose(factors.left.mT @ factors.left, np.diag(s[:5]), atol=1e-12)
    np.testing.assert_allclose(factors.right @ factors.right.mT, np.diag(s[:5]), atol=1e-12)
    np.testing.assert_allclose(Plain().spectrum(lambda: w), s, atol=1e-7)


@pytest.mark.parametrize("shape", [(12, 18), (18, 12), (14, 14), (150, 210)])
def test_whitening_loses_on_the_data_exactly_what_it_cuts_off(shape):
    w, x = some(*shape), inputs_of(shape[1], 5 * shape[1])
    values = torch.linalg.svdvals(w @ x.mT)[: min(shape)]
    for side in short_sides(w, inputs=x.mT @ x):
        torch.testing.assert_close(side.spectrum[: min(shape)], values, rtol=1e-6, atol=1e-6)
        for rank in (1, 6, 11):
            product = side.truncated(w, rank).product()
            error = torch.linalg.norm((w - product) @ x.mT)
            torch.testing.assert_close(error, values[rank:].norm())
            plain = Plain().truncated(w, rank).product()
            assert error < torch.linalg.norm((w - plain) @ x.mT)


def test_whitening_agrees_with_the_cholesky_of_svd_llm():
    w, x = some(12, 18), inputs_of(18, 200)
    s = np.linalg.cholesky((x.mT @ x).numpy())
    u, values, vh = np.linalg.svd(w.numpy() @ s, full_matrices=False)
    wanted = (u[:, :4] * values[:4]) @ vh[:4] @ np.linalg.inv(s)
    for side in short_sides(w, inputs=x.mT @ x):
        np.testing.assert_allclose(side.truncated(w, 4).product(), wanted, atol=1e-9)


@pytest.mark.parametrize("shape", [(12, 18), (18, 12), (14, 14), (130, 200), (200, 130)])
def test_weights_on_both_sides_give_the_least_error_under_both(shape):
    """To ten digits that of two full roots and a decomposition of the whole matrix."""
    rows, cols = shape
    w, x, g = some(*shape), inputs_of(cols, 9 * cols), inputs_of(rows, 9 * rows, seed=2)
    c, h = x.mT @ x / len(x), g.mT @ g / len(g)
    values = np.linalg.svd(
        scipy.linalg.sqrtm(h.numpy()).real @ w.numpy() @ scipy.linalg.sqrtm(c.numpy()).real,
        compute_uv=False,
    )
    for side in short_sides(w, inputs=c, outputs=h):
        for rank in (1, 4, min(shape) // 2):
            product = side.truncated(w, rank).product()
            found = lost(w - product, c, h)
            np.testing.assert_allclose(found, np.square(values[rank:]).sum(), rtol=1e-10)
            np.testing.assert_allclose(found, side.spectrum[rank:].square().sum(), rtol=1e-9)
    for other in (*short_sides(w), *short_sides(w, inputs=c), *short_sides(w, outputs=h)):
        assert found < lost(w - other.truncated(w, min(shape) // 2).product(), c, h)


def test_the_longer_sides_covariance_may_be_singular():
    """It has no root: fewer tokens than features are enough."""
    w, x, g = some(12, 40), inputs_of(40, 25), inputs_of(12, 90, seed=2)
    c, h = x.mT @ x, g.mT @ g
    side = decompose(w @ c @ w.mT, covariance_root(h), of_outputs=True)
    root = torch.linalg.cholesky(h)
    values = torch.linalg.svdvals(root.mT @ w @ x.mT)
    product = side.truncated(w, 5).product()
    np.testing.assert_allclose(lost(w - product, c, h), values[5:].square().sum(), rtol=1e-9)


def test_both_factors_of_a_component_have_the_same_norm():
    w, x = some(30, 18), inputs_of(18, 200)
    for side in short_sides(w, inputs=x.mT @ x):
        factors = side.truncated(w, 9)
        torch.testing.assert_close(factors.left.norm(dim=0), factors.right.norm(dim=1))


def test_asvd_scales_columns_by_the_root_of_the_mean_magnitude():
    w, x = some(12, 18), inputs_of(18, 200)
    magnitude = x.abs().mean(dim=0)
    scale = np.sqrt(magnitude.numpy())
    u, s, vh = np.linalg.svd(w.numpy() * scale, full_matrices=False)
    wanted = (u[:, :3] * s[:3]) @ vh[:3] / scale
    scaled = w * scale_root(magnitude).root
    outputs = decompose(scaled @ scaled.mT, None, of_outputs=True)
    inputs = decompose(w.mT @ w, scale_root(magnitude), of_outputs=False)
    for side in (outputs, inputs):
        np.testing.assert_allclose(side.truncated(w, 3).product(), wanted, atol=1e-10)


def test_features_that_are_never_on_do_no_harm():
    w, x = some(18, 12), inputs_of(12, 200)
    x[:, 3:6] = 0
    for root in (covariance_root(x.mT @ x), scale_root(x.abs().mean(dim=0))):
        product = decompose(w.mT @ w, root, of_outputs=False).truncated(w, 6).product()
        assert torch.isfinite(product).all()
        assert torch.linalg.norm((w - product) @ x.mT) < torch.linalg.norm(w @ x.mT)


@pytest.mark.parametrize("below", [0.0, 1e-9, 1e-6])
def test_a_covariance_that_is_not_positive_definite_has_a_root_where_cholesky_has_none(below):
    x = inputs_of(30, 10)  # fewer tokens than features
    c = x.mT @ x
    c -= below * c.diagonal().max() * torch.eye(30, dtype=c.dtype)
    root = covariance_root(c)
    found = root.times(root.adjoint_times(torch.eye(30, dtype=c.dtype)))
    tolerance = max(1e-6, 300 * below) * float(c.max())
    torch.testing.assert_close(found, c, atol=tolerance, rtol=0)
    torch.testing.assert_close(root.solved(found), torch.eye(30, dtype=c.dtype))
    torch.testing.assert_close(root.undone(root.adjoint_times(c)), c)


def test_a_covariance_of_nothing_weighs_all_alike():
    root = covariance_root(torch.zeros(4, 4))
    assert torch.equal(root.root, torch.ones(4).double())


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
        Plain().truncated(w, 2)
    with pytest.raises(InputError, match="covariance is not finite"):
        covariance_root(w)
    for root in (
        None,
        Root(torch.full((6,), torch.inf)),
        covariance_root(some(6, 6) @ some(6, 6).mT),
    ):
        middle = w if root is None or root.root.ndim == 2 else some(6, 6)
        with pytest.raises(InputError, match="not finite"):
            decompose(middle.clone(), root, of_outputs=False)


def test_a_zero_matrix_has_zero_factors():
    zero = torch.zeros(8, 5)
    assert not Plain().truncated(zero, 3).product().any()
    assert not leading_factors(torch.zeros(1100, 1100), 20).product().any()
    middle = torch.zeros(5, 5, dtype=torch.float64)
    assert not decompose(middle, None, of_outputs=False).truncated(zero, 3).product().any()

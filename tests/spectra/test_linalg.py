"""Singular values against known spectra and an independent implementation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectra.gram import eigenvalues, rounded_gram
from spectra.linalg import leading_subspaces, singular_values, singular_values_of_many
from spectra_data.errors import InputError
from tests.spectra.families import families

SHAPES = [(1, 1), (1, 7), (64, 64), (48, 200), (200, 48)]


def with_spectrum(values, rows, cols, seed=0):
    """A float64 matrix of known singular values."""
    draw = np.random.default_rng(seed)
    count = min(rows, cols)
    left, _ = np.linalg.qr(draw.standard_normal((rows, count)))
    right, _ = np.linalg.qr(draw.standard_normal((cols, count)))
    return torch.from_numpy(left * np.asarray(values) @ right.T)


def test_identity_and_orthogonal_matrices_have_ones():
    eye = torch.eye(50)
    orthogonal = with_spectrum(np.ones(50), 50, 50).float()
    for method in ("gram", "svd"):
        assert torch.equal(singular_values(eye, method=method), torch.ones(50, dtype=torch.float64))
        values = singular_values(orthogonal, method=method)
        torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_of_rank_one_has_one_value(shape):
    draw = np.random.default_rng(1)
    x, y = draw.standard_normal(shape[0]), draw.standard_normal(shape[1])
    values = singular_values(torch.from_numpy(np.outer(x, y)).float())
    first = np.linalg.norm(x) * np.linalg.norm(y)
    assert values[0] == pytest.approx(first, rel=1e-6)
    assert (values[1:] < 1e-6 * first).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_parity_with_torch_in_float64(shape, scale, dtype):
    matrix = (torch.from_numpy(np.random.default_rng(2).standard_normal(shape)) * scale).to(dtype)
    expected = torch.linalg.svdvals(matrix.double())
    for method in ("auto", "gram", "svd"):
        values = singular_values(matrix, method=method)
        assert values.dtype == torch.float64
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(100, 100), (100, 300), (300, 100)])
def test_the_stated_error_holds_for_an_ill_conditioned_matrix(shape):
    exact = np.logspace(0, -12, 100)
    matrix = with_spectrum(exact, *shape)
    gram = singular_values(matrix, method="gram").numpy()
    assert np.abs(gram - exact).max() < 1e-7
    leading = exact > 1e-3
    assert (np.abs(gram - exact) / exact)[leading].max() < 1e-9
    svd = singular_values(matrix).numpy()
    assert np.abs(svd - exact).max() < 1e-14


@pytest.mark.parametrize("exponent", [-300, -40, 40, 300])
def test_no_scale_overflows_or_vanishes(exponent):
    matrix = with_spectrum(np.linspace(3, 1, 20), 20, 30) * 10.0**exponent
    for method in ("gram", "svd"):
        values = singular_values(matrix, method=method) / 10.0**exponent
        torch.testing.assert_close(
            values, torch.linspace(3, 1, 20, dtype=torch.float64), rtol=1e-9, atol=0
        )


@given(st.integers(-60, 60))
def test_scaling_by_a_power_of_two_scales_every_value_exactly(exponent):
    matrix = torch.from_numpy(np.random.default_rng(3).standard_normal((9, 12))).float()
    scaled = singular_values(matrix * 2.0**exponent)
    assert torch.equal(scaled, singular_values(matrix) * 2.0**exponent)


def test_zero_and_non_finite_matrices_have_a_defined_answer():
    assert torch.equal(singular_values(torch.zeros(3, 5)), torch.zeros(3, dtype=torch.float64))
    for bad in (torch.nan, torch.inf):
        matrix = torch.ones(3, 5)
        matrix[1, 2] = bad
        assert singular_values(matrix).isnan().all()


def test_a_stack_is_decomposed_matrix_by_matrix():
    stack = torch.from_numpy(np.random.default_rng(4).standard_normal((2, 3, 6, 4))).float()
    stack[1, 1] = 0
    stack[0, 2, 0, 0] = torch.nan
    values = singular_values(stack)
    for i, j in np.ndindex(2, 3):
        torch.testing.assert_close(values[i, j], singular_values(stack[i, j]), equal_nan=True)


def test_numpy_arrays_give_numpy_arrays():
    values = singular_values(np.diag([3.0, 4.0]).astype(np.float32))
    assert isinstance(values, np.ndarray)
    assert values.tolist() == [4.0, 3.0]


def test_many_matrices_give_what_each_gives_alone():
    draw = np.random.default_rng(5)
    matrices = [torch.from_numpy(draw.standard_normal(shape)).float() for shape in SHAPES * 3]
    together = singular_values_of_many(matrices)
    for matrix, values in zip(matrices, together, strict=True):
        np.testing.assert_allclose(values, singular_values(matrix).numpy(), rtol=1e-10)
    assert singular_values_of_many([]) == []


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 0)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(InputError, match="two sides of at least 1"):
        singular_values(torch.zeros(shape))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("shape", SHAPES)
def test_cuda_gives_what_the_cpu_gives(shape):
    matrix = torch.from_numpy(np.random.default_rng(6).standard_normal(shape)).float()
    on_device = singular_values(matrix.cuda())
    assert on_device.is_cuda
    torch.testing.assert_close(on_device.cpu(), singular_values(matrix), rtol=1e-9, atol=0)
    matrix[0, 0] = torch.nan
    assert singular_values(matrix.cuda()).isnan().all()


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (24, 24)])
def test_leading_subspaces_are_those_of_lapack(shape):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape))
    left, right = leading_subspaces(x.float(), 5)
    u, s, _ = np.linalg.svd(x.numpy())
    np.testing.assert_allclose(left.T @ left, np.eye(5), atol=1e-6)
    np.testing.assert_allclose(right.T @ right, np.eye(5), atol=1e-6)
    np.testing.assert_allclose(np.abs(np.diag(left.T @ u[:, :5])), 1, atol=1e-5)
    np.testing.assert_allclose(np.diag(left.T @ x.numpy() @ right), s[:5], rtol=1e-5)
    assert (np.take_along_axis(left, np.abs(left).argmax(axis=0)[None], axis=0) > 0).all()


def test_subspaces_of_what_spans_nothing_are_nan():
    outer = torch.outer(torch.arange(1.0, 7.0), torch.ones(9)) * 1e-20
    left, right = leading_subspaces(outer, 3)
    assert np.isfinite(left[:, 0]).all()
    np.testing.assert_allclose(right[:, 0], 1 / 3, rtol=1e-6)
    assert np.isnan(left[:, 1:]).all()
    assert np.isnan(right[:, 1:]).all()
    for broken in (torch.zeros(4, 4), torch.full((4, 4), torch.nan)):
        assert np.isnan(np.concatenate(leading_subspaces(broken, 2))).all()
    with pytest.raises(InputError, match="no 5 leading singular vectors"):
        leading_subspaces(torch.ones(4, 6), 5)


SPECTRA = {
    "bulk": None,
    "power law": np.arange(1, 1025) ** -0.7,
    "two levels": np.where(np.arange(1024) < 512, 1.0, 0.0101),
    "even": np.linspace(1, 0.01, 1024),
}


def large(kind, dtype, length=1024):
    if SPECTRA[kind] is None:
        matrix = torch.from_numpy(np.random.default_rng(3).standard_normal((1024, length)))
    else:
        matrix = with_spectrum(SPECTRA[kind], 1024, length)
    return (matrix * 1e-30).to(dtype)


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)]
)
def test_mixed_precision_keeps_its_promise(kind, dtype):
    matrix = large(kind, dtype)
    exact = torch.linalg.svdvals(matrix.double())
    values = singular_values(matrix, method="mixed")
    above = exact > 1e-2 * exact[0]
    torch.testing.assert_close(values[above], exact[above], rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
def test_the_estimated_rounding_covers_the_true_one(kind, dtype):
    matrix = large(kind, dtype, 1500).T
    product, rounding, exponent = rounded_gram(matrix)
    found = eigenvalues(product)
    exact = torch.linalg.svdvals(matrix.double()).numpy()
    values = np.ldexp(np.sqrt(found[::-1].clip(min=0)), exponent)
    above = exact > 1e-2 * exact[0]
    assert np.abs(values / exact - 1)[above].max() <= rounding.error(found, 1e-2)


def test_a_spectrum_that_float32_products_would_spoil_is_recognised():
    product, rounding, _ = rounded_gram(large("two levels", torch.float32))
    assert rounding.error(eigenvalues(product), 1e-2) > 1e-4


def test_mixed_precision_of_nothing_to_lose():
    zero = torch.zeros(1024, 1100)
    assert torch.equal(singular_values(zero, method="mixed"), torch.zeros(1024).double())
    zero[3, 4] = -2.0
    assert singular_values(zero, method="mixed")[0] == 2.0
    zero[5, 5] = torch.nan
    assert singular_values(zero, method="mixed").isnan().all()


@pytest.mark.parametrize("kind", ["pairs", "blocks", "duplicates"])
def test_rounding_of_few_large_entries_is_not_overlooked(kind):
    draw = np.random.default_rng(4)
    if kind == "duplicates":  # rows that are nearly one and the same
        matrix = draw.standard_normal((1, 1024)) + 0.0105 * draw.standard_normal((1024, 1024))
    else:
        side = 2 if kind == "pairs" else 4
        matrix = np.zeros((1024, 1024))
        for i in range(0, 1024, side):
            block = with_spectrum(np.geomspace(1, 1 / 95, side), side, side, seed=i).numpy()
            matrix[i : i + side, i : i + side] = block
        matrix = matrix[draw.permutation(1024)]
    exact = np.linalg.svd(np.float32(matrix).astype(np.float64), compute_uv=False)
    values = singular_values(torch.from_numpy(matrix).float(), method="mixed").numpy()
    above = exact > 1e-2 * exact[0]
    np.testing.assert_allclose(values[above], exact[above], rtol=1e-4)


def require_promise(matrix):
    """Values above 1 % of the largest err by less than 1e-4 of themselves."""
    wide = matrix.double()
    exact = torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt().flip(0)
    above = exact > 1e-2 * exact[0]
    values = singular_values(matrix, method="mixed")
    torch.testing.assert_close(values[above], exact[above], rtol=1e-4, atol=0)


@pytest.mark.parametrize("others", ["zero", "whole", "diagonal"])
def test_rounding_is_not_overlooked_where_some_rows_have_none(others):
    draw = np.random.default_rng(0)
    exact, rounded = np.split(draw.permutation(1024), [64])  # those that a fixed draw would see
    matrix = torch.zeros(1024, 1024).double()
    matrix[rounded] = with_spectrum(np.where(np.arange(960) < 300, 1.0, 0.0102), 960, 1024)
    if others == "whole":
        matrix[exact] = torch.from_numpy(draw.integers(-1, 2, (64, 1024)) * 2.0**-10)
    if others == "diagonal":
        matrix[exact, exact] = 2.0**-10
    require_promise(matrix.float())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mixed_precision_keeps_its_promise_for_every_kind(seed, dtype):
    for _, matrix in families(1024, 1100, np.random.default_rng(seed)):
        require_promise(torch.from_numpy(matrix).to(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [64, 128, 256, 512, 960])
@pytest.mark.parametrize("level", [0.0102, 0.0105, 0.02])
def test_mixed_precision_keeps_its_promise_where_few_rows_carry_all(rows, level):
    draw = np.random.default_rng(rows)
    for leading in (1, rows // 4):
        values = np.where(np.arange(rows) < leading, 1.0, level)
        low = np.zeros((1024, 1024))
        carrying, others = np.split(draw.permutation(1024), [rows])
        low[carrying] = with_spectrum(values, rows, 1024, seed=leading)
        low[others] = 1e-3 * draw.integers(-1, 2, (1024 - rows, 1024))
        require_promise(torch.from_numpy(low).float())
        low[others] = 0
        require_promise(torch.from_numpy(low).float())
        require_promise(torch.from_numpy(low + 3e-6 * draw.standard_normal(low.shape)).float())


def test_the_smallest_numbers_of_float32_are_scaled():
    matrix = torch.randn(1024, 1024) * 1e-42
    values, exact = (singular_values(matrix, method=m) for m in ("mixed", "gram"))
    above = exact > 1e-2 * exact[0]
    torch.testing.assert_close(values[above], exact[above], rtol=1e-4, atol=0)

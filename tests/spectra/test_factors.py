"""Two ways to store a matrix of low rank, and the layers that run on them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectra.allocation.costs import factored_parameters
from spectra.storages.factors_layer import LowRankLinear
from spectra.storages.pivoted_layer import Pivoted, PivotedLinear, pivoted
from spectra.storages.registry import STORAGES
from spectra.storages.stored import Factors
from spectra_data.errors import InputError

SHAPES = [(24, 24, 10), (12, 30, 5), (30, 12, 5), (8, 8, 7), (9, 5, 1)]


def heavy(rows, cols, rank, seed=0, decay=1.0):
    """Factors of a matrix whose singular values fall like a power law."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(cols, rank, generator=generator, dtype=torch.float64))[0]
    half = torch.arange(1, rank + 1, dtype=torch.float64) ** (-decay / 2)
    return Factors(u * half, half[:, None] * v.mT)


def layer_of(factors, storage, bias=None):
    rows, cols = factors.left.shape[0], factors.right.shape[1]
    made = STORAGES[storage].layer()
    layer = made(cols, rows, factors.rank, bias=bias is not None, dtype=torch.float64)
    held = made.stored.encode(factors, torch.float64).tensors
    layer.load_state_dict(held if bias is None else held | {"bias": bias})
    return layer


@given(
    rows=st.integers(2, 20), cols=st.integers(2, 20), share=st.floats(0, 1), seed=st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_pivoted_storage_is_the_same_matrix_in_fewer_numbers(rows, cols, share, seed):
    rank = 1 + int(share * (min(rows, cols) - 2)) if min(rows, cols) > 2 else 1
    factors = heavy(rows, cols, rank, seed)
    stored = pivoted(factors)
    torch.testing.assert_close(stored.product(), factors.product(), rtol=1e-9, atol=1e-11)
    count = stored.kept.numel() + stored.coefficients.numel()
    assert count == int(factored_parameters(rows, cols, rank, "pivoted"))
    assert stored.rank == rank


def test_kept_rows_are_rows_of_the_matrix_and_of_a_tall_one_columns():
    wide, tall = heavy(10, 16, 4), heavy(16, 10, 4)
    stored = pivoted(wide)
    rows = wide.product()[[int((stored.order == i).nonzero()) for i in range(4)]]
    torch.testing.assert_close(stored.kept, rows)
    stored = pivoted(tall)
    assert stored.by_columns
    torch.testing.assert_close(stored.kept, tall.product()[:, stored.order[:4].long()])


@pytest.mark.parametrize(
    ("rows", "cols", "rank"), [(256, 256, 140), (512, 192, 120), (192, 512, 90)]
)
def test_pivoted_storage_is_well_conditioned_in_bfloat16(rows, cols, rank):
    factors = heavy(rows, cols, rank)
    exact = factors.product()
    stored = pivoted(factors, torch.bfloat16)
    wide = Pivoted(
        stored.kept.double(), stored.coefficients.double(), stored.order, stored.by_columns
    )
    error = (wide.product() - exact).norm() / exact.norm()
    assert stored.coefficients.abs().max() < 5  # partial pivoting keeps them small
    assert error < 0.012
    # least squares on the rounded rows halves what plain rounding loses, at least
    kept = pivoted(factors)
    plain = Pivoted(
        kept.kept.bfloat16().double(),
        kept.coefficients.bfloat16().double(),
        kept.order,
        kept.by_columns,
    )
    assert error < (plain.product() - exact).norm() / exact.norm()


def test_a_product_of_less_rank_than_its_factors_is_stored_as_well():
    factors = heavy(8, 8, 3)
    factors.left[:, 2] = 0
    torch.testing.assert_close(pivoted(factors).product(), factors.product())
    assert not pivoted(Factors(torch.zeros(8, 3), torch.zeros(3, 5))).product().any()
    factors.left[0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        pivoted(factors)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("biased", [False, True])
def test_a_layer_gives_what_its_product_gives(shape, storage, biased):
    rows, cols, rank = shape
    factors = heavy(rows, cols, rank)
    bias = torch.randn(rows, dtype=torch.float64) if biased else None
    layer = layer_of(factors, storage, bias)
    x = torch.randn(2, 3, cols, dtype=torch.float64)
    wanted = torch.nn.functional.linear(x, factors.product(), bias)
    torch.testing.assert_close(layer(x), wanted)  # with gradients
    with torch.no_grad():
        before = x.clone()
        torch.testing.assert_close(layer(x), wanted)
        torch.testing.assert_close(layer(x[0, 0]), wanted[0, 0])
        assert torch.equal(x, before)  # nothing is written into the input
    torch.testing.assert_close(layer.product(), factors.product())
    assert f"rank={rank}" in repr(layer)


@pytest.mark.parametrize("layer", [LowRankLinear, PivotedLinear])
@pytest.mark.parametrize("sides", [(6, 9), (9, 6)])
def test_gradients_of_a_layer_are_those_of_its_product(layer, sides):
    torch.manual_seed(0)
    cols, rows = sides
    made = layer(cols, rows, 3, bias=True, dtype=torch.float64)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, cols, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made, (x,))
    parameters = dict(made.named_parameters())
    g = torch.randn(4, rows, dtype=torch.float64)
    (made(x) * g).sum().backward()
    through_product = torch.autograd.grad(
        (torch.nn.functional.linear(x, made.product(), made.bias) * g).sum(),
        list(parameters.values()),
    )
    for parameter, wanted in zip(parameters.values(), through_product, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


def test_a_pivoted_layer_works_under_autocast_and_in_bfloat16():
    layer = layer_of(heavy(12, 12, 5), "pivoted").float()
    x = torch.randn(3, 12)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16

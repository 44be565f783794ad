"""Linear layers whose weight is stored as factors, or pivoted."""

from typing import Any

import torch
import torch.nn.functional as F

from spectra.allocation.costs import require_storage
from spectra.compression.factors import Factors, Pivoted, keeps_columns


class CompressedLinear(torch.nn.Module):
    """What both have in common."""

    storage: str

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool, at: Any):
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.bias = torch.nn.Parameter(torch.empty(out_features, **at)) if bias else None

    @property
    def factorisation(self) -> Factors | Pivoted:
        """What its weight is stored as."""
        raise NotImplementedError

    def product(self) -> torch.Tensor:
        """The weight that it stands for: (out_features, in_features)."""
        return self.factorisation.product()

    def extra_repr(self) -> str:
        """Sides and rank."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}"
        )


class LowRankLinear(CompressedLinear):
    """y = (x Bᵀ) Aᵀ + b: two factors instead of a weight."""

    storage = "factors"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        at = {"device": device, "dtype": dtype}
        super().__init__(in_features, out_features, rank, bias, at)
        self.A = torch.nn.Parameter(torch.empty(out_features, rank, **at))
        self.B = torch.nn.Parameter(torch.empty(rank, in_features, **at))

    @property
    def factorisation(self) -> Factors:
        """The factors."""
        return Factors(self.A, self.B)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        return F.linear(F.linear(x, self.B), self.A, self.bias)


class PivotedLinear(CompressedLinear):
    """Some outputs by kept rows of the weight, the others as combinations of these outputs.

    Of a weight with more rows than columns, all outputs by kept columns, of inputs to which the
    others are added. Where no gradient is asked for, products are written where they belong, which
    leaves one pass of putting in order; kernels like ranks that are multiples of 16.
    """

    storage = "pivoted"
    order: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        at = {"device": device, "dtype": dtype}
        super().__init__(in_features, out_features, rank, bias, at)
        self.by_columns = keeps_columns(out_features, in_features)
        if self.by_columns:
            kept, others = (out_features, rank), (rank, in_features - rank)
        else:
            kept, others = (rank, in_features), (out_features - rank, rank)
        self.kept = torch.nn.Parameter(torch.empty(kept, **at))
        self.coefficients = torch.nn.Parameter(torch.empty(others, **at))
        count = in_features if self.by_columns else out_features
        self.register_buffer("order", torch.arange(count, dtype=torch.int32, device=device))

    @property
    def factorisation(self) -> Pivoted:
        """What is kept, the coefficients and the order."""
        return Pivoted(self.kept, self.coefficients, self.order, self.by_columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        rows = x.reshape(-1, self.in_features)
        in_place = not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)
        forward = self._of_columns if self.by_columns else self._of_rows
        y = forward(rows, in_place and x.dtype == self.kept.dtype)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _of_rows(self, x: torch.Tensor, in_place: bool) -> torch.Tensor:
        if in_place:
            both = x.new_empty(len(x), self.out_features)
            kept = both[:, : self.rank]
            torch.mm(x, self.kept.mT, out=kept)
            torch.mm(kept, self.coefficients.mT, out=both[:, self.rank :])
        else:
            kept = F.linear(x, self.kept)
            both = torch.cat([kept, F.linear(kept, self.coefficients)], dim=1)
        y = _ordered(both, self.order)
        return y if self.bias is None else y + self.bias

    def _of_columns(self, x: torch.Tensor, in_place: bool) -> torch.Tensor:
        ordered = _ordered(x, self.order)
        kept, others = ordered[:, : self.rank], ordered[:, self.rank :]
        if in_place:
            kept.addmm_(others, self.coefficients.mT)
        else:
            kept = kept + F.linear(others, self.coefficients)
        return F.linear(kept, self.kept, self.bias)


LAYERS: dict[str, type[LowRankLinear] | type[PivotedLinear]] = {
    layer.storage: layer for layer in (LowRankLinear, PivotedLinear)
}


def layer_of_storage(storage: str) -> "type[LowRankLinear] | type[PivotedLinear]":
    """The layer for a storage.

    Raises
    ------
    InputError
        When there is no such storage.
    """
    return LAYERS[require_storage(storage)]


def put(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    """Replace a module by its path."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _ordered(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Columns in an order; gather is twice as fast as index_select on the CPU."""
    return x.gather(1, order.long().expand(len(x), -1))

"""Pivoted storage: some rows of a matrix, and the others as combinations of these.

It keeps r rows of the product and expresses the others through them: r(m + n - r) numbers instead
of r(m + n), for the same function up to rounding. If a matrix has more rows than columns, it keeps
columns, so that a layer has fewer numbers to reorder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from spectra.linalg import shifted
from spectra.storages.layer import CompressedLinear, LayerPair, linear
from spectra.storages.stored import Factors, StoredMatrix, wide
from spectra_data.errors import InputError

STEEPEST = 1e-5
"""Least entry on the diagonal of Cholesky's triangle, relative to the largest: its square, which
rounding is compared with, is still far above it."""


@dataclass(frozen=True, eq=False)
class Pivoted(StoredMatrix):
    """Some rows of a matrix and the others as combinations of these, or some of its columns."""

    kept: torch.Tensor
    """(rank, cols): rows of the matrix. By columns: (rows, rank)."""
    coefficients: torch.Tensor
    """(rows - rank, rank): the other rows through the kept. By columns: (rank, cols - rank)."""
    order: torch.Tensor
    """int32, (rows,): position of each row among the kept, followed by the others. By columns,
    (cols,): the kept columns, followed by the others."""
    by_columns: bool
    nonzero = ("kept",)
    """Not the coefficients: those of rows that are zero are zero, too."""
    indices = ("order",)

    @property
    def rank(self) -> int:
        return int(self.kept.shape[1 if self.by_columns else 0])

    @classmethod
    def shapes(cls, rows: int, cols: int, rank: int) -> dict[str, tuple[int, ...]]:
        """See `StoredMatrix`."""
        if keeps_columns(rows, cols):
            return {"kept": (rows, rank), "coefficients": (rank, cols - rank), "order": (cols,)}
        return {"kept": (rank, cols), "coefficients": (rows - rank, rank), "order": (rows,)}

    @classmethod
    def encode(cls, factors: Factors, dtype: torch.dtype) -> "Pivoted":
        """See `StoredMatrix`."""
        return pivoted(factors, dtype)

    @classmethod
    def decode(cls, tensors: Mapping[str, torch.Tensor], rows: int, cols: int) -> "Pivoted":
        """See `StoredMatrix`."""
        return cls(
            tensors["kept"], tensors["coefficients"], tensors["order"], keeps_columns(rows, cols)
        )

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """See `StoredMatrix`."""
        return {"kept": self.kept, "coefficients": self.coefficients, "order": self.order}

    def product(self) -> torch.Tensor:
        """(rows, cols)."""
        order = self.order.long()
        if not self.by_columns:
            return torch.cat([self.kept, self.coefficients @ self.kept])[order]
        sorted_columns = torch.cat([self.kept, self.kept @ self.coefficients], dim=1)
        product = torch.empty_like(sorted_columns)
        product[:, order] = sorted_columns
        return product

    def float(self) -> "Pivoted":
        """The same in float32."""
        return Pivoted(self.kept.float(), self.coefficients.float(), self.order, self.by_columns)

    def scaled(self, exponent: int) -> "Pivoted":
        """The product times 2^exponent, in float32."""
        kept = shifted(wide(self.kept), exponent).float()
        return Pivoted(kept, self.coefficients.float(), self.order, self.by_columns)


def keeps_columns(rows: int, cols: int) -> bool:
    """Whether pivoted storage of a matrix keeps columns."""
    return rows > cols


def pivoted(factors: Factors, dtype: torch.dtype | None = None) -> Pivoted:
    """Convert a product to pivoted storage.

    The rows (or columns) that are kept are the pivots of an LU decomposition, with partial
    pivoting, of an orthonormal basis: no entry of its unit lower factor is above 1, which keeps
    the coefficients small. Pivoted QR yields hardly smaller ones, at many times the cost.

    Parameters
    ----------
    factors
        The product, whose rank may be lower than their number of columns; computed in float64.
    dtype
        Precision that the result is rounded to; float64 if None. The coefficients are then those
        of the rounded rows, so that only their own rounding is lost.

    Raises
    ------
    InputError
        When the factors are not finite.
    """
    left, right = factors.left.double(), factors.right.double()
    by_columns = keeps_columns(left.shape[0], right.shape[1])
    if by_columns:
        left, right = right.mT, left.mT
    rank = left.shape[1]
    # with orthonormal columns, the choice depends on the rows' space alone
    basis = _orthonormal(left)
    decomposed, pivots, failed = torch.linalg.lu_factor_ex(basis)
    chosen, others = torch.split(_order(pivots, len(basis)), [rank, len(basis) - rank])
    kept = left[chosen] @ right
    unit, below = torch.split(decomposed, [rank, len(basis) - rank])  # in the order of the pivots
    coefficients = torch.linalg.solve_triangular(
        unit, below, upper=False, left=False, unitriangular=True
    )
    if failed or not torch.isfinite(coefficients).all() or not torch.isfinite(kept).all():
        raise InputError("its factors are not finite")
    if dtype is not None:
        coefficients = _refitted(kept, coefficients, kept.to(dtype).double()).to(dtype)
        kept = kept.to(dtype)
    order = torch.cat([chosen, others])
    if by_columns:
        return Pivoted(kept.mT.contiguous(), coefficients.mT.contiguous(), order.int(), True)
    return Pivoted(kept, coefficients, torch.argsort(order).int(), False)


def _orthonormal(left: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the columns' span, (rows, rank), by Cholesky's triangle if possible.

    That takes a third of the time of Householder's, and is far more accurate than the choice of
    pivots needs.
    """
    triangle, failed = torch.linalg.cholesky_ex(left.mT @ left, upper=True)
    diagonal = triangle.diagonal()
    if failed or float(diagonal.min()) < STEEPEST * float(diagonal.max()):
        basis: torch.Tensor = torch.linalg.qr(left)[0]
        return basis
    basis = torch.linalg.solve_triangular(triangle, left, upper=True, left=False)
    return basis


def _refitted(
    kept: torch.Tensor, coefficients: torch.Tensor, rounded: torch.Tensor
) -> torch.Tensor:
    """Least-squares coefficients of the other rows in terms of the rounded kept ones."""
    unit = rounded.abs().max().clamp(min=torch.finfo(rounded.dtype).tiny)
    kept, rounded = kept / unit, rounded / unit
    factor, failed = torch.linalg.cholesky_ex(rounded @ rounded.mT)
    if failed:
        return coefficients
    wanted = coefficients @ (kept @ rounded.mT)
    refitted = torch.cholesky_solve(wanted.mT, factor).mT
    return refitted if torch.isfinite(refitted).all() else coefficients


def _order(pivots: torch.Tensor, count: int) -> torch.Tensor:
    """The order of rows after LAPACK's exchanges, which count from 1: (count,)."""
    order = list(range(count))
    for i, pivot in enumerate(pivots.tolist()):
        order[i], order[pivot - 1] = order[pivot - 1], order[i]
    return torch.tensor(order)


class PivotedLinear(CompressedLinear):
    """Some outputs from kept rows of the weight, the others as combinations of these outputs.

    If the weight has more rows than columns, all outputs come from kept columns, whose inputs have
    combinations of the others added. Without gradients, products are written where they belong,
    which leaves one pass of reordering; kernels prefer ranks that are multiples of 16.
    """

    stored = Pivoted
    kept: torch.nn.Parameter
    coefficients: torch.nn.Parameter
    order: torch.Tensor

    @property
    def by_columns(self) -> bool:
        """Whether columns are kept."""
        return keeps_columns(self.out_features, self.in_features)

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

    def pair(self) -> "PivotedPair":
        """See `CompressedLinear`."""
        return PivotedPair(self)


class PivotedPair(LayerPair):
    """A `PivotedLinear` as two linear layers, and the order of its rows or columns."""

    order: torch.Tensor

    def __init__(self, layer: PivotedLinear) -> None:
        super().__init__()
        self.rank, self.by_columns = layer.rank, layer.by_columns
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kept = linear(layer.kept, layer.bias if layer.by_columns else None)
        self.coefficients = linear(layer.coefficients)
        self.bias = None if layer.by_columns else layer.bias
        self.register_buffer("order", layer.order)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        order = self.order.long()
        if self.by_columns:
            ordered = x[..., order]
            kept, others = ordered[..., : self.rank], ordered[..., self.rank :]
            result: torch.Tensor = self.kept(kept + self.coefficients(others))
            return result
        kept = self.kept(x)
        result = torch.cat([kept, self.coefficients(kept)], dim=-1)[..., order]
        return result if self.bias is None else result + self.bias

    def layer(self) -> PivotedLinear:
        """The layer that it stands for."""
        bias = self.kept.bias if self.by_columns else self.bias
        made = PivotedLinear(
            self.in_features, self.out_features, self.rank, bias=bias is not None, device="meta"
        )
        layers: Any = self
        made.kept, made.coefficients = layers.kept.weight, layers.coefficients.weight
        made.bias, made.order = bias, self.order
        return made


def _ordered(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Reorder columns; gather is twice as fast as index_select on the CPU."""
    return x.gather(1, order.long().expand(len(x), -1))

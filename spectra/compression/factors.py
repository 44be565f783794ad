"""A matrix of low rank, and the two ways to store it: as two factors, or pivoted.

Pivoted storage keeps r rows of the product and expresses the others through them: r(m + n - r)
numbers instead of r(m + n), for the same function up to rounding. Of a matrix with more rows than
columns it keeps columns, so that a layer has the fewer numbers to put in order.
"""

from dataclasses import dataclass

import torch

from spectra.linalg import scaled, shifted
from spectra_data.errors import InputError


@dataclass(frozen=True, eq=False)
class Factors:
    """A product of two factors."""

    left: torch.Tensor
    """(rows, rank)."""
    right: torch.Tensor
    """(rank, cols)."""

    @property
    def rank(self) -> int:
        return int(self.right.shape[0])

    def product(self) -> torch.Tensor:
        """(rows, cols)."""
        return self.left @ self.right

    def float(self) -> "Factors":
        """The same in float32."""
        return Factors(self.left.float(), self.right.float())

    def scaled(self, exponent: int) -> "Factors":
        """Factors of the product times 2^exponent, in float32, the left one's entries under 1."""
        left, own = scaled(self.left)
        return Factors(left, shifted(_wide(self.right), exponent + own).float())


@dataclass(frozen=True, eq=False)
class Pivoted:
    """Some rows of a matrix and the others as combinations of these, or some of its columns."""

    kept: torch.Tensor
    """(rank, cols): rows of the matrix. By columns: (rows, rank)."""
    coefficients: torch.Tensor
    """(rows - rank, rank): the others through the kept. By columns: (rank, cols - rank)."""
    order: torch.Tensor
    """int32, (rows,): where each row lies among the kept, followed by the others. By columns,
    (cols,): the kept columns, followed by the others."""
    by_columns: bool

    @property
    def rank(self) -> int:
        return int(self.kept.shape[1 if self.by_columns else 0])

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
        kept = shifted(_wide(self.kept), exponent).float()
        return Pivoted(kept, self.coefficients.float(), self.order, self.by_columns)


def keeps_columns(rows: int, cols: int) -> bool:
    """Whether pivoted storage of a matrix keeps columns."""
    return rows > cols


def pivoted(factors: Factors, dtype: torch.dtype | None = None) -> Pivoted:
    """Store a product pivoted.

    The rows (or columns) that are kept are the pivots of an LU decomposition, with partial
    pivoting, of an orthonormal basis: no entry of its unit lower factor is above 1, which keeps
    the coefficients small. Pivoted QR gives hardly smaller ones, at many times the cost.

    Parameters
    ----------
    factors
        Computed in float64; of a lower rank than they have columns, too.
    dtype
        What the result is rounded to; float64 where it is None. The coefficients are then those
        of the rounded rows, so that only their own rounding is lost.

    Raises
    ------
    InputError
        When they are not finite.
    """
    left, right = factors.left.double(), factors.right.double()
    by_columns = keeps_columns(left.shape[0], right.shape[1])
    if by_columns:
        left, right = right.mT, left.mT
    rank = left.shape[1]
    # orthonormal columns make the choice a matter of the rows' space alone
    basis, triangle = torch.linalg.qr(left)
    _, pivots, failed = torch.linalg.lu_factor_ex(basis)
    chosen, others = torch.split(_order(pivots, len(basis)), [rank, len(basis) - rank])
    kept = basis[chosen] @ (triangle @ right)
    coefficients = torch.linalg.solve_ex(basis[chosen], basis[others], left=False)[0]
    if failed or not torch.isfinite(coefficients).all() or not torch.isfinite(kept).all():
        raise InputError("its factors are not finite")
    if dtype is not None:
        coefficients = _refitted(kept, coefficients, kept.to(dtype).double()).to(dtype)
        kept = kept.to(dtype)
    order = torch.cat([chosen, others])
    if by_columns:
        return Pivoted(kept.mT.contiguous(), coefficients.mT.contiguous(), order.int(), True)
    return Pivoted(kept, coefficients, torch.argsort(order).int(), False)


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


def _wide(part: torch.Tensor) -> torch.Tensor:
    """In float32, or the wider dtype that it has."""
    return part if part.element_size() >= 4 else part.float()


def _order(pivots: torch.Tensor, count: int) -> torch.Tensor:
    """The order of rows after LAPACK's exchanges, which count from 1: (count,)."""
    order = list(range(count))
    for i, pivot in enumerate(pivots.tolist()):
        order[i], order[pivot - 1] = order[pivot - 1], order[i]
    return torch.tensor(order)

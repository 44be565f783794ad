r"""The best matrix of a given rank, for an error that is weighted on both sides.

:math:`\|L^T(W - W')S\|_F` with :math:`C = SS^T` of the inputs and :math:`G = LL^T` of the outputs
is least if :math:`L^TW'S` is the truncated singular value decomposition of :math:`L^TWS` (Eckart
and Young 1936). WeLore's data-free SVD has neither weight; ASVD's S is diagonal (Yuan et al. 2023);
whitening's is a root of the inputs' covariance (Wang et al. 2024, "SVD-LLM").
"""

from dataclasses import dataclass

import torch

from spectra.compression.leading import leading_factors
from spectra.storages.stored import Factors
from spectra_data.errors import InputError, first_line

FLOOR = 1e-8
"""Least eigenvalue of a covariance, relative to the largest: covariances of small models are not
numerically positive definite."""


@dataclass(frozen=True, eq=False)
class Root:
    """S with :math:`SS^T = C`, and its inverse; vectors if S is diagonal."""

    root: torch.Tensor
    """S, (n, n) or (n,)."""
    inverse: torch.Tensor
    """S⁻¹, (n, n) or (n,)."""

    def after(self, weight: torch.Tensor) -> torch.Tensor:
        """W S."""
        return weight * self.root if self.root.ndim == 1 else weight @ self.root

    def undone_after(self, weight: torch.Tensor) -> torch.Tensor:
        """W S⁻¹."""
        return weight * self.inverse if self.inverse.ndim == 1 else weight @ self.inverse


def covariance_root(
    covariance: torch.Tensor, *, floor: float = FLOOR, shrinkage: float = 0.0
) -> Root:
    """A root of a covariance, in float64, by its eigendecomposition.

    Parameters
    ----------
    covariance
        Covariance, (n, n), symmetric, positive semidefinite up to rounding.
    floor
        Least eigenvalue, relative to the largest.
    shrinkage
        Shrinkage towards the multiple of the identity with the same trace, from 0 to below 1.

    Raises
    ------
    InputError
        When the covariance is not finite.
    """
    c = covariance.double()
    c = (c + c.mT) / 2
    if not torch.isfinite(c).all():
        raise InputError("its covariance is not finite")
    if shrinkage:
        c = (1 - shrinkage) * c
        c.diagonal().add_(shrinkage / (1 - shrinkage) * c.diagonal().mean())
    values, vectors = torch.linalg.eigh(c)
    largest = float(values[-1])
    if largest <= 0:
        return Root(torch.ones(len(c), dtype=c.dtype), torch.ones(len(c), dtype=c.dtype))
    values = values.clamp(min=floor * largest).sqrt()
    return Root(vectors * values, (vectors / values).mT)


def scale_root(magnitude: torch.Tensor, exponent: float = 0.5) -> Root:
    """ASVD's diagonal: mean absolute activations to a power; 1 for features that are never active.

    Parameters
    ----------
    magnitude
        Mean absolute activation of every feature, (n,).
    exponent
        ASVD's α.
    """
    scale = magnitude.double().clamp(min=0.0) ** exponent
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return Root(scale, 1 / scale)


def weighted(
    weight: torch.Tensor, inputs: Root | None = None, outputs: Root | None = None
) -> torch.Tensor:
    """LᵀWS: (rows, cols), in float64; W itself if both roots are None."""
    if inputs is None and outputs is None:
        return weight
    matrix = weight.double()
    if inputs is not None:
        matrix = inputs.after(matrix)
    if outputs is not None:
        matrix = outputs.after(matrix.mT).mT
    return matrix


def truncate(
    weight: torch.Tensor,
    rank: int,
    *,
    inputs: Root | None = None,
    outputs: Root | None = None,
) -> Factors:
    """The best product of a given rank, as factors.

    Parameters
    ----------
    weight
        Weight, (rows, cols).
    rank
        Rank of the product.
    inputs, outputs
        Roots that weight the error; by default the plain Frobenius norm.

    Raises
    ------
    InputError
        When the weight is not finite, or the decomposition fails.
    """
    matrix = weighted(weight, inputs, outputs)
    if not torch.isfinite(matrix).all():
        raise InputError("its weight, or the weight times its statistics, is not finite")
    try:
        found = leading_factors(matrix, rank)
    except (RuntimeError, ValueError) as error:  # LAPACK did not converge
        raise InputError(f"its decomposition failed: {first_line(error)}") from error
    left, right = found.left, found.right
    if outputs is not None:
        left = outputs.undone_after(left.mT).mT
    if inputs is not None:
        right = inputs.undone_after(right)
    if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
        raise InputError("its factors are not finite")
    return Factors(left, right)

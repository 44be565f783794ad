r"""The best matrix of any rank, for an error that is weighted on both sides.

:math:`\|L^T(W - W')S\|_F`, with :math:`C = SS^T` of the inputs and :math:`G = LL^T` of the outputs'
gradients, is least if :math:`L^TW'S` is the truncated singular value decomposition of
:math:`L^TWS` (Eckart and Young 1936). Only its shorter side is needed. With R a root of that side's
weight, of outputs, :math:`W' = R^{-T}U_rU_r^TR^TW`, where :math:`U_r` are the leading eigenvectors
of :math:`P = R^TMR`, :math:`M = WCW^T`; of inputs, :math:`W' = WRU_rU_r^TR^{-1}` with
:math:`M = W^TGW`. The eigenvalues of P are the squared singular values. The longer side's weight
has no root and no inverse, and need not even be formed: M is the second moment of the outputs Wx,
or of the gradients carried back, :math:`W^Tg`.

ASVD weighs with a diagonal S (Yuan et al. 2023), whitening with the inputs' covariance alone (Wang
et al. 2024, "SVD-LLM").
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack

from spectra.eigen import Eigensystem, eigensystem
from spectra.storages.stored import Factors
from spectra_data.errors import InputError, first_line

FLOOR = 1e-8
"""Least eigenvalue of a covariance that has no root, relative to its norm: covariances of small
models are not numerically positive definite."""


@dataclass(frozen=True, eq=False)
class Root:
    """R with :math:`RR^T = C`: lower triangular, or the vector of a diagonal."""

    root: torch.Tensor
    """(n, n) or (n,), in float64."""

    def to(self, device: torch.device) -> "Root":
        """The same on a device."""
        return Root(self.root.to(device))

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """R x, for x of shape (n, k)."""
        return self.root[:, None] * x if self.root.ndim == 1 else self.root @ x

    def adjoint_times(self, x: torch.Tensor) -> torch.Tensor:
        """Rᵀ x, for x of shape (n, k)."""
        return self.root[:, None] * x if self.root.ndim == 1 else self.root.mT @ x

    def solved(self, x: torch.Tensor) -> torch.Tensor:
        """C⁻¹ x, for x of shape (n, k)."""
        if self.root.ndim == 1:
            return x / self.root.square()[:, None]
        return torch.cholesky_solve(x, self.root)

    def undone(self, x: torch.Tensor) -> torch.Tensor:
        """R⁻ᵀ x, for x of shape (n, k)."""
        if self.root.ndim == 1:
            return x / self.root[:, None]
        solved: torch.Tensor = torch.linalg.solve_triangular(self.root.mT, x, upper=True)
        return solved

    def around(self, middle: torch.Tensor) -> torch.Tensor:
        """The upper half of Rᵀ M R, for that of M, (n, n), whose memory is reused on the CPU."""
        if self.root.ndim == 1:
            return self.root[:, None] * middle * self.root
        if middle.device.type != "cpu":
            return self.root.mT @ (middle @ self.root)
        # a quarter of the products of matrices that are neither triangular nor symmetric
        lower = np.asfortranarray(self.root.numpy())
        made, _ = lapack.dsygst(middle.numpy().T, lower, itype=2, lower=1, overwrite_a=1)
        return torch.from_numpy(made.T)  # laid out as torch does, it is the upper half


def covariance_root(
    covariance: torch.Tensor, *, floor: float = FLOOR, shrinkage: float = 0.0
) -> Root:
    """The Cholesky root of a covariance, in float64.

    Parameters
    ----------
    covariance
        Covariance, (n, n), symmetric, positive semidefinite up to rounding.
    floor
        Share of its norm that is added to the diagonal, if it has no root otherwise.
    shrinkage
        Shrinkage towards the multiple of the identity with the same trace, from 0 to below 1.

    Raises
    ------
    InputError
        When the covariance is not finite.
    """
    c = shrunk(covariance.double(), shrinkage)
    if not torch.isfinite(c).all():
        raise InputError("its covariance is not finite")
    norm = float(torch.linalg.matrix_norm(c))
    if norm == 0:
        return Root(torch.ones(len(c), dtype=c.dtype, device=c.device))
    root, failed = torch.linalg.cholesky_ex(c)
    singular = bool(failed) or float(root.diagonal().min()) ** 2 < floor * norm
    while singular:
        c.diagonal().add_(floor * norm)
        root, failed = torch.linalg.cholesky_ex(c)
        singular, floor = bool(failed), 10 * floor
    return Root(root)


def shrunk(moment: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """A copy of a moment, shrunk towards the multiple of the identity with the same trace."""
    made = (1 - shrinkage) * moment
    made.diagonal().add_(shrinkage * moment.diagonal().mean())
    return made


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
    return Root(torch.where(scale > 0, scale, torch.ones_like(scale)))


@dataclass(frozen=True, eq=False)
class ShortSide:
    """The best approximations of a weight, of every rank, from its shorter side."""

    of_outputs: bool
    """Whether the side is that of the outputs, the weight's rows."""
    root: Root | None
    """Root of the side's weight; None for the identity."""
    eigen: Eigensystem
    """Eigensystem of P."""

    @property
    def spectrum(self) -> torch.Tensor:
        """Singular values of the weighted matrix, (side,), descending.

        The squares of those that are cut off sum to the squared error.
        """
        return self.eigen.values.clamp(min=0.0).sqrt()

    def truncated(self, weight: torch.Tensor, rank: int) -> Factors:
        """The best product of a given rank; both factors of a component have the same norm.

        Parameters
        ----------
        weight
            The weight, (rows, cols), that was decomposed.
        rank
            Rank of the product.

        Raises
        ------
        InputError
            When the factors are not finite.
        """
        w = weight.double() if self.of_outputs else weight.double().mT
        vectors = self.eigen.leading(rank).to(w.device)
        if self.root is None:
            left, right = vectors, vectors.mT @ w
        else:
            root = self.root.to(w.device)
            left, right = root.undone(vectors), root.times(vectors).mT @ w
        norms = [torch.linalg.vector_norm(left, dim=0), torch.linalg.vector_norm(right, dim=1)]
        balance = (norms[1] / norms[0]).sqrt()
        balance = torch.where(balance > 0, balance, torch.ones_like(balance))
        left, right = left * balance, right / balance[:, None]
        if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
            raise InputError("its factors are not finite")
        return Factors(left, right) if self.of_outputs else Factors(right.mT, left.mT)


def decompose(middle: torch.Tensor, root: Root | None, *, of_outputs: bool) -> ShortSide:
    """Decompose a weighted matrix over its shorter side.

    Parameters
    ----------
    middle
        M: :math:`WCW^T` if the side is that of the outputs, else :math:`W^TGW`; (side, side), in
        float64. Its memory is reused.
    root
        Root of the side's own weight; None for the identity.
    of_outputs
        Whether the side is that of the outputs.

    Raises
    ------
    InputError
        When it is not finite, or the decomposition fails.
    """
    matrix = middle if root is None else root.around(middle)
    if not torch.isfinite(matrix).all():
        raise InputError("its weight, or the weight times its statistics, is not finite")
    try:
        return ShortSide(of_outputs, root, eigensystem(matrix))
    except (RuntimeError, ValueError) as error:  # LAPACK did not converge
        raise InputError(f"its decomposition failed: {first_line(error)}") from error

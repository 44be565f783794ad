r"""The eigensystem of a symmetric matrix, whose leading vectors are computed when a rank is chosen.

On the CPU a matrix is reduced to tridiagonal form, :math:`P = QTQ^T` (Householder; LAPACK's sytrd),
which is a fifth of a full decomposition. T yields all eigenvalues at once. Q is kept as its
reflectors, half a matrix; once a rank r is known, the r leading eigenvectors of T (Dhillon's MRRR,
LAPACK's stemr) are multiplied by it. On other devices, and for small sides, all vectors are
computed at once. Either is nested: the first r vectors do not depend on how many follow.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh_tridiagonal, lapack

Doubles = npt.NDArray[np.float64]
SMALL_SIDE = 128
"""Side below which all vectors at once are as fast."""
SINGLE_SIDE = 1024
"""Side from which reflectors are kept in float32.

The leading eigenvectors then turn by some 1e-6, so what they leave out grows by the square of that.
"""
ORTHOGONAL = 1e-8
"""Largest departure from orthogonality that is accepted from MRRR."""


class Eigensystem(ABC):
    """Eigenvalues of a symmetric matrix, and as many leading eigenvectors as are wanted."""

    values: torch.Tensor
    """Eigenvalues, (side,), descending, in float64 on the CPU."""
    names: ClassVar[tuple[str, ...]]
    """Names of everything that it holds."""

    @abstractmethod
    def leading(self, count: int) -> torch.Tensor:
        """The leading eigenvectors: (side, count), orthonormal columns in float64."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that it holds, by name, to be written to a file; see `from_tensors`."""
        return {name: getattr(self, name) for name in self.names}


def eigensystem(symmetric: torch.Tensor) -> Eigensystem:
    """Decompose a symmetric matrix.

    Parameters
    ----------
    symmetric
        (side, side), finite, in float64; its upper half is read. On the CPU its memory is reused.

    Raises
    ------
    RuntimeError
        When LAPACK's iteration does not converge.

    Examples
    --------
    >>> found = eigensystem(torch.diag(torch.tensor([1.0, 9.0, 4.0], dtype=torch.float64)))
    >>> found.values, found.leading(1)
    """
    if symmetric.device.type != "cpu" or len(symmetric) < SMALL_SIDE:
        values, vectors = torch.linalg.eigh(symmetric, UPLO="U")
        return Vectors(values.flip(-1).cpu(), vectors.flip(-1))
    return Reflectors.of(symmetric.numpy())


def from_tensors(tensors: Mapping[str, torch.Tensor]) -> Eigensystem:
    """The eigensystem that these tensors were written from."""
    kind = Vectors if "vectors" in tensors else Reflectors
    return kind(**{name: tensors[name] for name in kind.names})


@dataclass(frozen=True, eq=False)
class Vectors(Eigensystem):
    """All eigenvectors."""

    values: torch.Tensor
    vectors: torch.Tensor
    """(side, side), columns in the order of the values."""
    names: ClassVar = ("values", "vectors")

    def leading(self, count: int) -> torch.Tensor:
        """See `Eigensystem`."""
        return self.vectors[:, :count]


@dataclass(frozen=True, eq=False)
class Reflectors(Eigensystem):
    """A tridiagonal matrix, and the reflectors that lead to it."""

    values: torch.Tensor
    diagonal: torch.Tensor
    """(side,), float64."""
    beside: torch.Tensor
    """(side - 1,), float64: the entries beside the diagonal."""
    scales: torch.Tensor
    """(side - 1,), float64: 2 / ‖v‖² of each reflector I - scale v vᵀ, or 0 for none."""
    folded: torch.Tensor
    """(side // 2, side): the columns v, whose first entry counts as 1, two in a row."""
    names: ClassVar = ("values", "diagonal", "beside", "scales", "folded")

    @classmethod
    def of(cls, symmetric: Doubles) -> "Reflectors":
        """Reduce a symmetric matrix, of which the upper half is read, in its own memory."""
        side = len(symmetric)
        space = int(lapack.dsytrd_lwork(side, lower=1)[0])
        # the upper half of rows is the lower half of columns, as Fortran lays them out
        reduced, diagonal, beside, scales, _ = lapack.dsytrd(
            symmetric.T, lower=1, lwork=space, overwrite_a=1
        )
        packed = folded(reduced[1:, :-1], np.float32 if side >= SINGLE_SIDE else np.float64)
        # a rounded v with a scale of its own is a reflection again, to float64's last digit
        scales = np.where(scales == 0, 0.0, 2 / _squared_columns(packed, side - 1))
        values = eigh_tridiagonal(diagonal, beside, eigvals_only=True, lapack_driver="sterf")
        arrays = (values[::-1].copy(), diagonal, beside, scales, packed)
        return cls(*(torch.from_numpy(array) for array in arrays))

    def leading(self, count: int) -> torch.Tensor:
        """See `Eigensystem`."""
        vectors = self._of_tridiagonal(count)
        columns, scales = unfolded(self.folded.numpy(), len(vectors) - 1), self.scales.numpy()
        below = np.asfortranarray(vectors[1:])
        space = int(lapack.dormqr("L", "N", columns, scales, below, -1)[1][0])
        vectors[1:] = lapack.dormqr("L", "N", columns, scales, below, space, overwrite_c=1)[0]
        return torch.from_numpy(vectors)

    def _of_tridiagonal(self, count: int) -> Doubles:
        """Leading eigenvectors of the tridiagonal matrix: (side, count)."""
        diagonal, beside = self.diagonal.numpy(), self.beside.numpy()
        side = len(diagonal)
        some = {"select": "i", "select_range": (side - count, side - 1)} if count < side else {}
        try:
            _, vectors = eigh_tridiagonal(diagonal, beside, lapack_driver="stemr", **some)
            exact = _departure(vectors) <= ORTHOGONAL
        except np.linalg.LinAlgError:
            exact = False
        if not exact:  # slower, and as sure as can be
            _, vectors = eigh_tridiagonal(diagonal, beside, lapack_driver="stev")
        return np.array(vectors[:, ::-1][:, :count], order="F")


def _departure(vectors: Doubles) -> float:
    """How far columns are from orthonormal, by a random vector."""
    probe = np.random.default_rng(0).standard_normal(vectors.shape[1])
    back = vectors.T @ (vectors @ probe)
    return float(np.abs(back - probe).max())


def folded(lower: Doubles, dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    """The lower half of a matrix without gaps: row j holds column j, then column side - 1 - j."""
    side = len(lower)
    folded = np.zeros(((side + 1) // 2, side + 1), dtype)
    for j, row in enumerate(folded):
        other = side - 1 - j
        row[: side - j] = lower[j:, j]
        if other > j:
            row[side - j :] = lower[other:, other]
    return folded


def unfolded(folded: npt.NDArray[np.floating], side: int) -> Doubles:
    """The lower half that was folded: (side, side), zero above."""
    lower = np.zeros((side, side), order="F")
    for j, row in enumerate(folded):
        other = side - 1 - j
        lower[j:, j] = row[: side - j]
        lower[other:, other] = row[side - j :] if other > j else lower[other:, other]
    return lower


def _squared_columns(folded: npt.NDArray[np.floating], side: int) -> Doubles:
    """Squared norm of each folded column, whose first entry counts as 1: (side,)."""
    squares = np.ones(side)
    for j, row in enumerate(folded.astype(np.float64)):
        other = side - 1 - j
        squares[j] += row[1 : side - j] @ row[1 : side - j]
        if other > j:
            squares[other] += row[side - j + 1 :] @ row[side - j + 1 :]
    return squares

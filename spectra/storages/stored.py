"""The stored form of a low-rank matrix in a layer and in a file, and the two factors behind it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from spectra.linalg import scaled, shifted


class StoredMatrix(ABC):
    """A low-rank matrix in the form of a storage.

    In a layer and in the file it is a set of named tensors.
    """

    nonzero: ClassVar[tuple[str, ...]]
    """Tensors that are zero only if the matrix is."""
    indices: ClassVar[tuple[str, ...]] = ()
    """Tensors of int32 indices, which are not trained; the others are floating-point."""

    @classmethod
    @abstractmethod
    def shapes(cls, rows: int, cols: int, rank: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its tensors."""

    @classmethod
    @abstractmethod
    def encode(cls, factors: "Factors", dtype: torch.dtype) -> Self:
        """Encode the factors that truncation returns, rounded to a dtype.

        Raises
        ------
        InputError
            When the factors are not finite.
        """

    @classmethod
    @abstractmethod
    def decode(cls, tensors: Mapping[str, torch.Tensor], rows: int, cols: int) -> Self:
        """Rebuild the matrix from its tensors."""

    @property
    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors, as `shapes` names them."""

    @abstractmethod
    def product(self) -> torch.Tensor:
        """The matrix itself: (rows, cols)."""

    @abstractmethod
    def float(self) -> Self:
        """The same in float32."""

    @abstractmethod
    def scaled(self, exponent: int) -> Self:
        """The product times 2^exponent, in float32; no part overflows on the way."""


@dataclass(frozen=True, eq=False)
class Factors(StoredMatrix):
    """A product of two factors: the result of truncation, and the storage ``factors``."""

    left: torch.Tensor
    """(rows, rank)."""
    right: torch.Tensor
    """(rank, cols)."""
    nonzero = ("A", "B")

    @property
    def rank(self) -> int:
        return int(self.right.shape[0])

    @classmethod
    def shapes(cls, rows: int, cols: int, rank: int) -> dict[str, tuple[int, ...]]:
        """See `StoredMatrix`."""
        return {"A": (rows, rank), "B": (rank, cols)}

    @classmethod
    def encode(cls, factors: "Factors", dtype: torch.dtype) -> Self:
        """See `StoredMatrix`."""
        return cls(factors.left.to(dtype), factors.right.to(dtype))

    @classmethod
    def decode(cls, tensors: Mapping[str, torch.Tensor], rows: int, cols: int) -> Self:
        """See `StoredMatrix`."""
        return cls(tensors["A"], tensors["B"])

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """See `StoredMatrix`."""
        return {"A": self.left, "B": self.right}

    def product(self) -> torch.Tensor:
        """(rows, cols)."""
        return self.left @ self.right

    def float(self) -> Self:
        """The same in float32."""
        return type(self)(self.left.float(), self.right.float())

    def scaled(self, exponent: int) -> Self:
        """Factors of the product times 2^exponent, in float32, the left one's entries under 1."""
        left, own = scaled(self.left)
        return type(self)(left, shifted(wide(self.right), exponent + own).float())


def wide(part: torch.Tensor) -> torch.Tensor:
    """A tensor in float32, or in its own dtype if that is wider."""
    return part if part.element_size() >= 4 else part.float()

"""A matrix of low rank, as truncation gives it: a product of two factors."""

from dataclasses import dataclass

import torch

from spectra.linalg import scaled, shifted


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
        return Factors(left, shifted(wide(self.right), exponent + own).float())


def wide(part: torch.Tensor) -> torch.Tensor:
    """In float32, or the wider dtype that it has."""
    return part if part.element_size() >= 4 else part.float()

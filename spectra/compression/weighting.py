"""Weighting of a matrix's error, which tells its spectrum and its best product of any rank."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from spectra.compression.leading import leading_factors
from spectra.linalg import singular_values
from spectra.storages.stored import Factors
from spectra_data.errors import InputError, first_line

UNREACHED = "calibration never reached its layer: name more windows, or use --method svd"


class Weighting(ABC):
    """Weighting of the error of one matrix."""

    @abstractmethod
    def spectrum(self, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Singular values of the weighted matrix, (full_rank,), descending.

        The squares of those that are cut off sum to the squared error. The weight is read only if
        they are not known yet.
        """

    @abstractmethod
    def truncated(self, weight: torch.Tensor, rank: int) -> Factors:
        """The best product of a given rank.

        Parameters
        ----------
        weight
            Weight, (rows, cols).
        rank
            Rank of the product.

        Raises
        ------
        InputError
            When the weight or the product is not finite, or the decomposition fails.
        """


class Plain(Weighting):
    """The Frobenius norm, of WeLore's SVD; the square root of a singular value on either side."""

    def spectrum(self, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """See `Weighting`."""
        return singular_values(read(), method="gram")

    def truncated(self, weight: torch.Tensor, rank: int) -> Factors:
        """See `Weighting`."""
        if not torch.isfinite(weight).all():
            raise InputError("its weight is not finite")
        try:
            factors = leading_factors(weight, rank)
        except (RuntimeError, ValueError) as error:  # LAPACK did not converge
            raise InputError(f"its decomposition failed: {first_line(error)}") from error
        if not all(torch.isfinite(part).all() for part in (factors.left, factors.right)):
            raise InputError("its factors are not finite")
        return factors


@dataclass(frozen=True, eq=False)
class Weightings:
    """Weightings of all matrices, made on demand."""

    of: Callable[[str], Weighting]
    """Function from the name of a matrix to its weighting."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Identity of the text and weights that they come from."""
    unreached: frozenset[str] = frozenset()
    """Matrices without a weighting, as no token reached them."""
    close: Callable[[], None] = lambda: None
    """Called when they are no longer needed."""


def plain_weightings() -> Weightings:
    """The Frobenius norm for every matrix: WeLore's SVD."""
    return Weightings(lambda name: Plain())

"""The cost of ranks as stored: some matrices as factors, the others whole."""

import operator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from spectra.allocation.candidates import Candidates, Ranks
from spectra.allocation.costs import factored_parameters, require_storage
from spectra.storages.registry import DEFAULT_STORAGE
from spectra_data.errors import InputError

LRC_FACTOR = 0.5
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pricing:
    """How matrices of given ranks are stored, and the cost.

    Raises
    ------
    InputError
        When there is no such storage, or a number is out of range.
    """

    candidates: Candidates
    storage: str = DEFAULT_STORAGE
    """Storage of factored matrices."""
    align: int = 1
    """Multiple to which ranks of factored matrices are rounded down."""
    lrc_factor: float = LRC_FACTOR
    """Fraction of the full rank below which a matrix is an LRC."""
    lrcs_alone: bool = False
    """Whether an N-LRC stays whole at any rank."""

    def __post_init__(self) -> None:
        require_storage(self.storage)
        if operator.index(self.align) < 1:
            raise InputError(f"ranks are multiples of 1 or more, not of {self.align}")
        if not 0 < self.lrc_factor <= 1:
            raise InputError(f"the LRC rule's factor is in (0, 1], not {self.lrc_factor:g}")

    @cached_property
    def dense(self) -> Ranks:
        """Parameters of each dense matrix: (matrix,)."""
        return self.candidates.rows * self.candidates.cols

    def factored(self, ranks: Ranks) -> Flags:
        """Which matrices are stored as factors: (matrix,)."""
        full = self.candidates.full_ranks
        low = ranks < (self.lrc_factor * full if self.lrcs_alone else full)
        return low & (self._in_factors(ranks) < self.dense)

    def parameters(self, ranks: Ranks) -> Ranks:
        """Parameters of each matrix as stored: (matrix,)."""
        return np.where(self.factored(ranks), self._in_factors(ranks), self.dense)

    def share(self, ranks: Ranks) -> float:
        """Stored fraction of the dense parameters."""
        return float(self.parameters(ranks).sum() / self.dense.sum())

    def aligned(self, ranks: Ranks) -> Ranks:
        """Ranks, of factored matrices rounded down to multiples of `align`; others unchanged."""
        if self.align == 1:
            return ranks
        least = np.minimum(self.align, self.candidates.full_ranks)
        down = np.maximum(ranks // self.align * self.align, least)
        return np.where(self.factored(ranks), np.minimum(down, ranks.clip(least)), ranks)

    def _in_factors(self, ranks: Ranks) -> Ranks:
        return factored_parameters(self.candidates.rows, self.candidates.cols, ranks, self.storage)

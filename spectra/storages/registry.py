"""The storages that `--storage` and rank maps name."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from spectra.registry import Entry, Registry

if TYPE_CHECKING:
    from spectra.storages.layer import CompressedLinear
    from spectra.storages.stored import StoredMatrix

Integers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


class Storage(ABC):
    """A storage: what a rank costs, and the layer that holds a matrix so.

    Costs need no torch, as allocation and the dashboard read them; the layer's module is imported
    when it is asked for. The layer says what it holds (`StoredMatrix`), and what adapters are put
    on (`LayerPair`).
    """

    @abstractmethod
    def parameters(self, rows: Integers, cols: Integers, rank: Integers) -> Integers:
        """Parameters of matrices of some rank; arguments broadcast."""

    @abstractmethod
    def rank_of(self, rows: Integers, cols: Integers, parameters: Doubles) -> Doubles:
        """The inverse: the real-valued rank that takes so many parameters, at most rows * cols."""

    def bytes(self, rows: Integers, cols: Integers, rank: Integers, width: int) -> Integers:
        """Bytes of matrices of some rank, with `width` bytes for a parameter."""
        return self.parameters(rows, cols, rank) * width

    @abstractmethod
    def layer(self) -> "type[CompressedLinear]":
        """The layer."""

    def stored(self) -> "type[StoredMatrix]":
        """What its layer and the file hold."""
        return self.layer().stored


STORAGES: Registry[Storage] = Registry(
    "storage",
    {
        "factors": Entry("two factors", "spectra.storages.factors:FACTORS"),
        "pivoted": Entry(
            "kept rows, and the others expressed through them: the same function in fewer numbers",
            "spectra.storages.pivoted:PIVOTED",
        ),
    },
)
DEFAULT_STORAGE = "factors"
BUDGET_STORAGE = "pivoted"
"""Of `compress --budget`: the one that keeps the most ranks."""

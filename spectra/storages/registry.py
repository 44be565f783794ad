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
    """A storage: what a rank costs, and the layer that holds a matrix in this form.

    Costs need no torch, since allocation and the dashboard read them; the layer's module is
    imported on first use. The layer names the matrix that it holds (`StoredMatrix`) and the linear
    layers that carry adapters (`LayerPair`).
    """

    @abstractmethod
    def parameters(self, rows: Integers, cols: Integers, rank: Integers) -> Integers:
        """Number of parameters of matrices of some rank; arguments broadcast."""

    @abstractmethod
    def rank_of(self, rows: Integers, cols: Integers, parameters: Doubles) -> Doubles:
        """Inverse of `parameters`: the real-valued rank for a number up to rows * cols."""

    def bytes(self, rows: Integers, cols: Integers, rank: Integers, width: int) -> Integers:
        """Bytes of matrices of some rank, with `width` bytes for a parameter."""
        return self.parameters(rows, cols, rank) * width

    @abstractmethod
    def layer(self) -> "type[CompressedLinear]":
        """Type of the layer."""

    def stored(self) -> "type[StoredMatrix]":
        """Type of the matrix that its layer and the file hold."""
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
"""Storage of `compress --budget`: the one that keeps the most ranks."""

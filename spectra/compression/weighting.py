"""Weighting of a matrix's error by the statistics of its inputs and outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from spectra.compression.truncation import Root, truncate, weighted
from spectra.storages.stored import Factors


@dataclass(frozen=True, eq=False)
class Weighting:
    """Weighting of the error of one matrix."""

    inputs: Root | None = None
    outputs: Root | None = None
    towards: torch.Tensor | None = None
    """Matrix (cols, cols) by which the weight is multiplied before it is approximated."""

    def truncated(self, weight: torch.Tensor, rank: int) -> Factors:
        """The best product of a given rank; see `truncate`."""
        if self.towards is not None:
            weight = weight.double() @ self.towards
        return truncate(weight, rank, inputs=self.inputs, outputs=self.outputs)

    def spectrum(self, weight: torch.Tensor) -> torch.Tensor:
        """Singular values of the weighted matrix.

        The squares of those that are cut off sum to the squared error.
        """
        from spectra.linalg import singular_values

        return singular_values(weighted(weight, self.inputs, self.outputs), method="gram")


@dataclass(frozen=True, eq=False)
class Weightings:
    """Weightings of all matrices, made on demand."""

    of: Callable[[str], Weighting]
    """Function from the name of a matrix to its weighting."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Identity of the text and weights that they come from."""
    close: Callable[[], None] = lambda: None
    """Called when they are no longer needed."""


def plain_weightings() -> Weightings:
    """The Frobenius norm for every matrix: WeLore's SVD."""
    return Weightings(lambda name: Weighting())

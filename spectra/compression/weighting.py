"""How a matrix' error is weighted by what a method knows of its inputs and outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from spectra.compression.truncation import Root, truncate, weighted
from spectra.storages.stored import Factors


@dataclass(frozen=True, eq=False)
class Weighting:
    """Of one matrix."""

    inputs: Root | None = None
    outputs: Root | None = None
    towards: torch.Tensor | None = None
    """(cols, cols): the weight times this is approximated instead of the weight itself."""

    def truncated(self, weight: torch.Tensor, rank: int) -> Factors:
        """The best product of a rank; see `truncate`."""
        if self.towards is not None:
            weight = weight.double() @ self.towards
        return truncate(weight, rank, inputs=self.inputs, outputs=self.outputs)

    def spectrum(self, weight: torch.Tensor) -> torch.Tensor:
        """Singular values of the weighted matrix: their squares are what truncation loses."""
        from spectra.linalg import singular_values

        return singular_values(weighted(weight, self.inputs, self.outputs), method="gram")


@dataclass(frozen=True, eq=False)
class Weightings:
    """Of all matrices, made when they are asked for."""

    of: Callable[[str], Weighting]
    """By the matrix' name."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What they were made from."""
    close: Callable[[], None] = lambda: None
    """Called when nobody needs them any more."""


def plain_weightings() -> Weightings:
    """The Frobenius norm for every matrix: WeLore's SVD."""
    return Weightings(lambda name: Weighting())

"""The layer of a matrix that is stored as two factors."""

from typing import Any

import torch
import torch.nn.functional as F

from spectra.storages.layer import CompressedLinear, LayerPair, linear
from spectra.storages.stored import Factors


class LowRankLinear(CompressedLinear):
    """y = (x Bᵀ) Aᵀ + b: two factors instead of a weight."""

    stored = Factors
    A: torch.nn.Parameter
    B: torch.nn.Parameter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        return F.linear(F.linear(x, self.B), self.A, self.bias)

    def pair(self) -> "FactorPair":
        """See `CompressedLinear`."""
        return FactorPair(self)


class FactorPair(LayerPair):
    """A `LowRankLinear` as two linear layers: x to B x to A B x."""

    def __init__(self, layer: LowRankLinear) -> None:
        super().__init__()
        self.rank = layer.rank
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.B = linear(layer.B)
        self.A = linear(layer.A, layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        result: torch.Tensor = self.A(self.B(x))
        return result

    def layer(self) -> LowRankLinear:
        """The layer that it stands for."""
        made = LowRankLinear(
            self.in_features,
            self.out_features,
            self.rank,
            bias=self.A.bias is not None,
            device="meta",
        )
        layers: Any = self
        made.A, made.B, made.bias = layers.A.weight, layers.B.weight, layers.A.bias
        return made

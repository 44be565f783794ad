"""Low-rank layers as pairs of linear layers, which is what adapters know how to adapt.

A pair shares its parameters with the layer that it was made of, and computes the same. Adapters
that are merged into the two linear layers leave the pair what it was: a layer of the same rank.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch

from spectra.compression.layers import CompressedLinear, LowRankLinear, PivotedLinear, put
from spectra.matrices import layer_of

PARTS = ("A", "B", "kept", "coefficients")


class FactorPair(torch.nn.Module):
    """A `LowRankLinear` as two linear layers: x to B x to A B x."""

    is_pair = True

    def __init__(self, layer: LowRankLinear) -> None:
        super().__init__()
        self.rank = layer.rank
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.B = _linear(layer.B)
        self.A = _linear(layer.A, layer.bias)

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
        parts: Any = self
        made.A, made.B, made.bias = parts.A.weight, parts.B.weight, parts.A.bias
        return made


class PivotedPair(torch.nn.Module):
    """A `PivotedLinear` as two linear layers, and the order of its rows or columns."""

    is_pair = True
    order: torch.Tensor

    def __init__(self, layer: PivotedLinear) -> None:
        super().__init__()
        self.rank, self.by_columns = layer.rank, layer.by_columns
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kept = _linear(layer.kept, layer.bias if layer.by_columns else None)
        self.coefficients = _linear(layer.coefficients)
        self.bias = None if layer.by_columns else layer.bias
        self.register_buffer("order", layer.order)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        order = self.order.long()
        if self.by_columns:
            ordered = x[..., order]
            kept, others = ordered[..., : self.rank], ordered[..., self.rank :]
            result: torch.Tensor = self.kept(kept + self.coefficients(others))
            return result
        kept = self.kept(x)
        result = torch.cat([kept, self.coefficients(kept)], dim=-1)[..., order]
        return result if self.bias is None else result + self.bias

    def layer(self) -> PivotedLinear:
        """The layer that it stands for."""
        bias = self.kept.bias if self.by_columns else self.bias
        made = PivotedLinear(
            self.in_features, self.out_features, self.rank, bias=bias is not None, device="meta"
        )
        parts: Any = self
        made.kept, made.coefficients = parts.kept.weight, parts.coefficients.weight
        made.bias, made.order = bias, self.order
        return made


def pair(model: torch.nn.Module) -> None:
    """Replace every low-rank layer by a pair of linear ones."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRankLinear):
            put(model, name, FactorPair(module))
        elif isinstance(module, PivotedLinear):
            put(model, name, PivotedPair(module))


def unpair(model: torch.nn.Module) -> None:
    """Replace every pair by the low-rank layer that it stands for."""
    for name, module in list(model.named_modules()):
        if isinstance(module, FactorPair | PivotedPair):
            put(model, name, module.layer())


def linear_layers(model: torch.nn.Module) -> dict[str, str]:
    """The linear layers of the blocks of a paired model, with the matrix that each belongs to."""
    return {
        name: matrix_of(model, name)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and layer_of(name) is not None
    }


def matrix_of(model: torch.nn.Module, name: str) -> str:
    """The matrix that a linear layer is, or is a part of."""
    parent, _, last = name.rpartition(".")
    inside = last in PARTS and isinstance(model.get_submodule(parent), FactorPair | PivotedPair)
    return parent if inside else name


def chosen(layers: dict[str, str], targets: str | Iterable[str]) -> list[str]:
    """The linear layers whose own name or whose matrix's name is a target.

    As `peft` reads them: a string is a regular expression for the whole name, others are ends of
    names.
    """
    named: Callable[[str], bool]
    if isinstance(targets, str):
        pattern: Any = re.compile(targets)
        named = lambda name: pattern.fullmatch(name) is not None  # noqa: E731
    else:
        ends = set(targets)
        named = lambda name: any(name == e or name.endswith(f".{e}") for e in ends)  # noqa: E731
    return [name for name, matrix in layers.items() if named(name) or named(matrix)]


def compressed_layers(model: torch.nn.Module) -> dict[str, CompressedLinear]:
    """The low-rank layers of a model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, CompressedLinear)}


def _linear(weight: Any, bias: Any = None) -> torch.nn.Linear:
    """A linear layer that shares these parameters."""
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight, made.bias = weight, bias
    return made

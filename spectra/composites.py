"""Matrices that no parameter holds: those of low-rank layers and of layers with adapters."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Composite:
    """In the place of a parameter: the matrix that a module applies, made of several parameters.

    Computed in float32 from what the module holds, whenever it is asked for.
    """

    module: "torch.nn.Module"
    """One with `factorisation`, e.g. `spectra.compression.layers.LowRankLinear`; or any that maps
    its last dimension linearly, with a bias or without."""

    @property
    def stored(self) -> "list[torch.nn.Parameter]":
        """The parameters that it is made of."""
        named = self.module.named_parameters()
        return [parameter for name, parameter in named if name.rpartition(".")[2] != "bias"]

    @property
    def requires_grad(self) -> bool:
        return any(p.requires_grad for p in self.module.parameters())

    @property
    def dtype(self) -> "torch.dtype":
        return self.stored[0].dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        described: Any = self.module
        while not hasattr(described, "in_features"):
            described = described.base_layer
        return described.out_features, described.in_features

    def detach(self) -> "torch.Tensor":
        """(rows, cols), of its own memory."""
        factorisation: Any = getattr(self.module, "factorisation", None)
        if factorisation is None:
            return _applied(self.module, self.shape[1])
        whole: torch.Tensor = factorisation.float().product().detach()
        return whole


def composites(model: "torch.nn.Module") -> dict[str, Composite]:
    """The layers of a model whose matrix no parameter holds, by path.

    Low-rank ones, layers with adapters of `peft`, and the pairs of linear layers
    (`spectra.compression.pairs`) which adapters are put on.
    """
    found: dict[str, Composite] = {}
    for path, module in model.named_modules():
        if is_composite(module) and not any(_inside(path, outer) for outer in found):
            found[path] = Composite(module)
    return found


def is_composite(module: "torch.nn.Module") -> bool:
    """Whether a module applies one matrix that it holds in parts."""
    if hasattr(module, "factorisation") or getattr(module, "is_pair", False):
        return True
    base = getattr(module, "base_layer", None)  # peft's name of what it adapts
    return base is not None and hasattr(base, "in_features")


def _inside(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.")


def _applied(module: "torch.nn.Module", cols: int) -> "torch.Tensor":
    """What a module makes of the unit vectors, without dropout."""
    import torch

    state = {
        name: value.detach().float() if value.is_floating_point() else value
        for name, value in _tensors(module)
    }
    device = next(module.parameters()).device
    flags = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            unit = torch.eye(cols, device=device)
            rows = torch.func.functional_call(module, state, (unit,))
            offset = torch.func.functional_call(module, state, (torch.zeros_like(unit[:1]),))
    finally:
        for part, flag in flags.items():
            part.training = flag
    matrix: torch.Tensor = (rows - offset).mT.contiguous()
    return matrix


def _tensors(module: "torch.nn.Module") -> "Iterator[tuple[str, torch.Tensor]]":
    return itertools.chain(module.named_parameters(), module.named_buffers())

"""Matrices that no single parameter holds.

They are those of low-rank layers, of layers with adapters, and of layers whose weight is computed
from other parameters, such as by weight norm.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

INPUTS = ("in_features", "nx")
"""Names that linear layers have for the size of their inputs."""
UNITS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Composite:
    """Stand-in for a parameter: the matrix that a module applies, made of several parameters.

    It is computed in float32 from the module's tensors on every access.
    """

    module: "torch.nn.Module"
    """Module whose `product` is its matrix, like `spectra.storages.layer.CompressedLinear`; or any
    that maps the last dimension linearly, with or without a bias."""

    @property
    def stored(self) -> "list[torch.nn.Parameter]":
        """The parameters that it is made of."""
        named = self.module.named_parameters()
        return [parameter for name, parameter in named if not is_bias(name)]

    @property
    def requires_grad(self) -> bool:
        return any(p.requires_grad for p in self.module.parameters())

    @property
    def dtype(self) -> "torch.dtype":
        return self.stored[0].dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        layer: Any = self.module
        while not any(hasattr(layer, name) for name in INPUTS):
            layer = layer.base_layer
        if hasattr(layer, "nx"):  # transformers' Conv1D
            return layer.nf, layer.nx
        return layer.out_features, layer.in_features

    def detach(self) -> "torch.Tensor":
        """The matrix (rows, cols), in memory of its own."""
        layer: Any = self.module
        if not hasattr(layer, "product"):
            computed = _computed(self.module)
            return _applied(self.module, self.shape[1]) if computed is None else computed
        # factors are multiplied in float32
        parts = layer.factorisation.float() if hasattr(layer, "factorisation") else layer
        whole: torch.Tensor = parts.product().detach().float()
        return whole


def composites(model: "torch.nn.Module") -> dict[str, Composite]:
    """The layers of a model whose matrix no single parameter holds, by path.

    They are low-rank layers, layers with adapters of `peft`, the pairs of linear layers
    (`spectra.models.pairs`) that carry adapters, and linear layers with a parametrized weight.
    """
    found: dict[str, Composite] = {}
    for path, module in model.named_modules():
        if is_composite(module) and not any(_inside(path, outer) for outer in found):
            found[path] = Composite(module)
    return found


def is_composite(module: "torch.nn.Module") -> bool:
    """Whether a module applies one matrix that it holds in parts."""
    if hasattr(module, "product") or getattr(module, "is_pair", False) or _is_parametrized(module):
        return True
    base = getattr(module, "base_layer", None)  # peft's name for the layer that it adapts
    return any(hasattr(base, name) for name in INPUTS)


def _is_parametrized(module: "torch.nn.Module") -> bool:
    """Whether a linear layer computes its weight from other parameters."""
    import torch

    if not isinstance(module, torch.nn.Linear):
        return False
    held = getattr(module, "parametrizations", None)
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return (held is not None and "weight" in held) or bool(own & {"weight_v", "weight_orig"})


def normed(magnitude: "torch.Tensor", direction: "torch.Tensor") -> "torch.Tensor":
    r"""The weight g v / ‖v‖ of weight norm (Salimans, Kingma 2016), in float32 or float64.

    Parameters
    ----------
    magnitude
        g: (rows, 1), (1, cols), or one number.
    direction
        v: (rows, cols). Norms are taken along the sides that g does not have.
    """
    import torch

    dtype = torch.promote_types(direction.dtype, torch.float32)
    v, g = direction.to(dtype), magnitude.to(dtype)
    sides = tuple(i for i in range(v.ndim) if g.ndim == 0 or g.shape[i] == 1)
    whole: torch.Tensor = v * (g / torch.linalg.vector_norm(v, dim=sides, keepdim=True))
    return whole


def masked(mask: "torch.Tensor", values: "torch.Tensor") -> "torch.Tensor":
    """The weight of `torch.nn.utils.prune`: the values that a mask keeps, (rows, cols) each."""
    return values * mask.to(values.dtype)


def is_bias(name: str) -> bool:
    """Whether a parameter's name is that of a bias."""
    return name.rpartition(".")[2] == "bias"


def _inside(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.")


def _computed(module: "torch.nn.Module") -> "torch.Tensor | None":
    """The weight of a layer that computes it from a few parameters; None for other layers."""
    layer: Any = module
    if hasattr(layer, "weight_v") and hasattr(layer, "weight_g"):
        return normed(layer.weight_g.detach(), layer.weight_v.detach()).float()
    if hasattr(layer, "weight_orig") and hasattr(layer, "weight_mask"):
        return masked(layer.weight_mask, layer.weight_orig.detach()).float()
    if _is_parametrized(module) and hasattr(layer, "parametrizations"):
        return _evaluated(layer.parametrizations["weight"], [()])[0]
    return None


def _applied(module: "torch.nn.Module", cols: int) -> "torch.Tensor":
    """Images of the unit vectors under a module, without dropout and biases: (rows, cols)."""
    import torch

    device = next(module.parameters()).device

    def units() -> "Iterator[tuple[torch.Tensor]]":
        for first in range(0, cols, UNITS_AT_ONCE):
            some = torch.zeros(min(UNITS_AT_ONCE, cols - first), cols, device=device)
            some.diagonal(first).fill_(1)
            yield (some,)

    return torch.cat([image.mT for image in _evaluated(module, units())], dim=1)


def _evaluated(
    module: "torch.nn.Module", inputs: "Iterable[tuple[torch.Tensor, ...]]"
) -> "list[torch.Tensor]":
    """A module's outputs for inputs, in float32, without dropout and biases."""
    import torch

    state = {
        name: value.detach().float() if value.is_floating_point() else value
        for name, value in _tensors(module)
    }
    # not subtracted afterwards: next to a large bias, a small weight would lose its digits
    state |= {name: torch.zeros_like(value) for name, value in state.items() if is_bias(name)}
    device = next(module.parameters()).device
    flags = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return [torch.func.functional_call(module, state, given) for given in inputs]
    finally:
        for part, flag in flags.items():
            part.training = flag


def _tensors(module: "torch.nn.Module") -> "Iterator[tuple[str, torch.Tensor]]":
    return itertools.chain(module.named_parameters(), module.named_buffers())

r"""Second moments of the inputs of linear layers, and of the loss's gradients at their outputs.

With inputs x and output gradients g over all tokens, :math:`C = E[xx^T]` weighs the columns of a
weight and :math:`G = E[gg^T]` its rows: :math:`\|G^{1/2}(W - W')C^{1/2}\|_F^2` is the second-order
loss of replacing W by W', if inputs and gradients are assumed to be independent (Martens and
Grosse 2015, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature"). Layers
that read the same input (q, k and v; gate and up) share one C.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Inputs = tuple[torch.Tensor, ...]


@dataclass(eq=False)
class Moments:
    """Sums over the tokens seen by a group of layers with the same input."""

    second: torch.Tensor
    """Sum of x xᵀ: (features, features), float64."""
    absolute: torch.Tensor
    """Sum of |x|: (features,), float64."""
    count: int = 0
    """Number of tokens."""

    @classmethod
    def empty(cls, features: int) -> "Moments":
        """Moments of no token."""
        double = torch.float64
        return cls(
            torch.zeros(features, features, dtype=double), torch.zeros(features, dtype=double)
        )

    def add(self, x: torch.Tensor) -> None:
        """Add tokens, (..., features): products per batch in float32, sums in float64."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        self.second += (rows.mT @ rows).double().cpu()
        self.absolute += rows.abs().sum(dim=0).double().cpu()
        self.count += len(rows)

    @property
    def covariance(self) -> torch.Tensor:
        """The mean of x xᵀ: (features, features)."""
        return self.second / max(self.count, 1)

    @property
    def magnitude(self) -> torch.Tensor:
        """The mean of |x|: (features,)."""
        return self.absolute / max(self.count, 1)


@dataclass(eq=False)
class BlockStatistics:
    """Statistics of one block, by the name of a layer within it."""

    groups: dict[str, int] = field(default_factory=dict)
    """Group of every layer; layers of one group read the same input."""
    inputs: dict[int, Moments] = field(default_factory=dict)
    """Moments of inputs, by group."""
    gradients: dict[str, Moments] = field(default_factory=dict)
    """Moments of the loss's gradients at outputs, by layer; empty without a backward pass."""

    def of(self, name: str) -> Moments:
        """The moments of a layer's input."""
        return self.inputs[self.groups[name]]


def linear_layers(block: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers in a block, by name."""
    return {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def input_of(inputs: Inputs, named: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The input that a linear layer was called with, by position or by name."""
    return inputs[0] if inputs else named["input"]


@contextlib.contextmanager
def watching_inputs(
    layers: Mapping[str, torch.nn.Module], statistics: BlockStatistics
) -> Iterator[None]:
    """Add the inputs of layers to statistics while the layers run."""
    last: dict[str, torch.Tensor] = {}

    def watcher(name: str):  # type: ignore[no-untyped-def]
        def watch(_: torch.nn.Module, inputs: Inputs, named: Mapping[str, torch.Tensor]) -> None:
            x = input_of(inputs, named)
            shared = next((other for other, seen in last.items() if seen is x), None)
            last[name] = x
            if name not in statistics.groups:
                new = len(statistics.inputs)
                statistics.groups[name] = statistics.groups[shared] if shared else new
                if not shared:
                    statistics.inputs[new] = Moments.empty(x.shape[-1])
            if shared is None:
                statistics.of(name).add(x)

        return watch

    handles = [
        layer.register_forward_pre_hook(watcher(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def watching_gradients(
    layers: Mapping[str, torch.nn.Module], statistics: BlockStatistics
) -> Iterator[None]:
    """Add the gradients at the outputs of layers when the backward pass reaches them."""

    def watcher(name: str):  # type: ignore[no-untyped-def]
        def add(gradient: torch.Tensor) -> None:
            if name not in statistics.gradients:
                statistics.gradients[name] = Moments.empty(gradient.shape[-1])
            statistics.gradients[name].add(gradient)

        def watch(_: torch.nn.Module, __: tuple[torch.Tensor, ...], out: Any) -> None:
            if isinstance(out, torch.Tensor):  # e.g. a router returns several
                out.register_hook(add)  # type: ignore[no-untyped-call]

        return watch

    handles = [layer.register_forward_hook(watcher(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

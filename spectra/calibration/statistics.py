r"""Second moments of what passes through linear layers, forwards and backwards.

With inputs x and output gradients g over all tokens, :math:`C = E[xx^T]` weighs the columns of a
weight and :math:`G = E[gg^T]` its rows: :math:`\|G^{1/2}(W - W')C^{1/2}\|_F^2` is the second-order
loss of replacing W by W', if inputs and gradients are assumed to be independent (Martens and
Grosse 2015, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature"). Only the
shorter side of a weight is needed (`spectra.compression.truncation`): the longer side's moment
enters through the weight, as that of its outputs Wx or of the gradients that it carries back,
:math:`W^Tg`, and is summed as such. Layers that read the same input (q, k and v; gate and up) share
the moments of it.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

INPUTS, OUTPUTS, GRADIENTS, CARRIED = "inputs", "outputs", "gradients", "carried"
"""What second moments are of: x, Wx, g and Wᵀg. The outputs are those before the bias is added."""
MAGNITUDES = "magnitudes"
"""The mean size of inputs, which is no second moment."""
TILES = 4
LEAST_TILE, LARGEST_TILE = 128, 512
"""Side of the tiles that a symmetric sum is made of, of which only half are computed."""

Inputs = tuple[torch.Tensor, ...]


@dataclass(eq=False)
class Moments:
    """Sums over tokens of vectors x with some number of features, in float64."""

    lower: torch.Tensor | None
    """Sum of x xᵀ, of which the lower half is filled: (features, features); None if not wanted."""
    squares: torch.Tensor | None
    """Sum of x²: (features,); None if it is the diagonal of `lower`."""
    absolute: torch.Tensor | None
    """Sum of |x|: (features,); None if not wanted."""
    count: int = 0
    """Number of tokens."""

    @classmethod
    def empty(cls, x: torch.Tensor, *, second: bool = True, magnitude: bool = False) -> "Moments":
        """Moments of no token yet, for vectors like x, (..., features)."""
        features = x.shape[-1]
        at: dict[str, Any] = {"dtype": torch.float64, "device": x.device}
        return cls(
            torch.zeros(features, features, **at) if second else None,
            None if second else torch.zeros(features, **at),
            torch.zeros(features, **at) if magnitude else None,
        )

    def add(self, x: torch.Tensor) -> None:
        """Add tokens, (..., features); sums are in float64, see `add_products`."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        self.count += len(rows)
        if self.lower is not None:
            add_products(self.lower, rows)
        if self.squares is not None:
            self.squares += rows.square().sum(dim=0)
        if self.absolute is not None:
            self.absolute += rows.abs().sum(dim=0)

    @property
    def covariance(self) -> torch.Tensor:
        """The mean of x xᵀ: (features, features)."""
        assert self.lower is not None
        return whole_of(self.lower) / max(self.count, 1)

    @property
    def variances(self) -> torch.Tensor:
        """The mean of x²: (features,)."""
        squares = self.squares if self.lower is None else self.lower.diagonal()
        assert squares is not None
        return squares / max(self.count, 1)

    @property
    def magnitude(self) -> torch.Tensor:
        """The mean of |x|: (features,)."""
        assert self.absolute is not None
        return self.absolute / max(self.count, 1)


def add_products(lower: torch.Tensor, rows: torch.Tensor) -> None:
    """Add xᵀx, for x of shape (tokens, features), to the lower half of a sum in float64.

    Products of few features, which cost little, are formed in float64, too.
    """
    features = rows.shape[1]
    if features <= LARGEST_TILE:
        rows = rows.double()
    if rows.device.type != "cpu":
        lower += rows.mT @ rows
        return
    side = min(max(-(-features // TILES), LEAST_TILE), LARGEST_TILE)
    for i in range(0, features, side):
        left = rows[:, i : i + side].mT
        for j in range(0, i + 1, side):
            lower[i : i + side, j : j + side] += left @ rows[:, j : j + side]


def whole_of(lower: torch.Tensor) -> torch.Tensor:
    """A symmetric matrix from its lower half."""
    return lower.tril() + lower.tril(-1).mT


@dataclass(eq=False)
class BlockStatistics:
    """Moments of one block, by the name of a layer within it."""

    groups: dict[str, int] = field(default_factory=dict)
    """Group of every layer; layers of one group read the same input."""
    inputs: dict[int, Moments] = field(default_factory=dict)
    """Moments of inputs, by group."""
    outputs: dict[str, Moments] = field(default_factory=dict)
    gradients: dict[str, Moments] = field(default_factory=dict)
    """Empty without a backward pass, as is the next."""
    carried: dict[str, Moments] = field(default_factory=dict)

    def of(self, name: str) -> Moments:
        """The moments of a layer's input."""
        return self.inputs[self.groups[name]]

    def share(self, name: str) -> float:
        """Tokens that reached a layer over those that reached the block: less than 1 for an expert.

        A moment is a mean over its layer's tokens; the loss is a sum over all.
        """
        return self.of(name).count / max(moments.count for moments in self.inputs.values())


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
def watching(
    layers: Mapping[str, torch.nn.Linear],
    statistics: BlockStatistics,
    wanted: Mapping[str, Collection[str]],
) -> Iterator[None]:
    """Add what passes through layers to statistics while the layers run.

    Parameters
    ----------
    layers
        Linear layers by name.
    statistics
        Statistics to add to.
    wanted
        What is wanted of each layer: second moments of its inputs, outputs, gradients, or of what
        it carries back, and magnitudes of inputs. Variances of inputs are always taken, those of
        gradients if a backward pass runs.
    """
    handles = []
    inputs = _InputWatch(statistics, wanted)
    for name, layer in layers.items():
        handles.append(layer.register_forward_pre_hook(inputs.hook(name), with_kwargs=True))
        handles.append(layer.register_forward_hook(_output_hook(name, statistics, wanted[name])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _InputWatch:
    """Hooks on inputs, which find out which layers share them."""

    def __init__(self, statistics: BlockStatistics, wanted: Mapping[str, Collection[str]]) -> None:
        self._statistics = statistics
        self._wanted = wanted
        self._last: dict[str, torch.Tensor] = {}

    def hook(self, name: str) -> Any:
        """The hook of a layer."""

        def watch(_: torch.nn.Module, inputs: Inputs, named: dict[str, torch.Tensor]) -> Any:
            x = input_of(inputs, named)
            self._add(name, x)
            if CARRIED not in self._wanted[name] or not x.requires_grad:
                return None
            own = x.view_as(x)  # the gradient of the shared input is the sum over its readers
            own.register_hook(_adding(self._statistics.carried, name))  # type: ignore[no-untyped-call]
            return ((own, *inputs[1:]), named) if inputs else ((), {**named, "input": own})

        return watch

    def _add(self, name: str, x: torch.Tensor) -> None:
        known, second = self._statistics, INPUTS in self._wanted[name]
        shared = next((other for other, seen in self._last.items() if seen is x), None)
        self._last[name] = x
        if name not in known.groups:
            new = len(known.inputs)
            known.groups[name] = new if shared is None else known.groups[shared]
            if shared is None:
                magnitude = MAGNITUDES in self._wanted[name]
                known.inputs[new] = Moments.empty(x, second=second, magnitude=magnitude)
        moments = known.of(name)
        if shared is None:
            moments.add(x)
        elif second and moments.lower is None:  # the first reader of this input did not want it
            whole = Moments.empty(x)
            whole.add(x)
            moments.lower = whole.lower


def _output_hook(name: str, statistics: BlockStatistics, wanted: Collection[str]) -> Any:
    def watch(layer: torch.nn.Linear, _: Inputs, out: Any) -> None:
        if not isinstance(out, torch.Tensor):  # e.g. a router returns several
            return
        if OUTPUTS in wanted:
            plain = out.detach() if layer.bias is None else out.detach() - layer.bias
            _adding(statistics.outputs, name)(plain)
        if out.requires_grad:
            second = GRADIENTS in wanted
            out.register_hook(_adding(statistics.gradients, name, second=second))  # type: ignore[no-untyped-call]

    return watch


def _adding(moments: dict[str, Moments], name: str, *, second: bool = True) -> Any:
    def add(values: torch.Tensor) -> None:
        if name not in moments:
            moments[name] = Moments.empty(values, second=second)
        moments[name].add(values)

    return add

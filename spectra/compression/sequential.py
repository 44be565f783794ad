r"""Weightings on the outputs of compressed layers: each block is calibrated after those before it.

With original inputs x and inputs x' from the compressed prefix, :math:`\|Wx - W'x'\|` is least,
without a limit on the rank, for :math:`W' = W\,E[xx'^T]\,E[x'x'^T]^{-1}`; under a limit, for its
truncation whitened by :math:`E[x'x'^T]`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from spectra.allocation.rankmap import RankMap
from spectra.calibration.blocks import Blocks, Passage, open_blocks
from spectra.calibration.statistics import linear_layers
from spectra.compression.calibrated import calibration_text
from spectra.compression.settings import Settings
from spectra.compression.truncation import covariance_root, decompose
from spectra.compression.weighting import Weighting, Weightings
from spectra.machine.progress import Progress
from spectra.models.source import Source
from spectra.storages.stored import Factors


@dataclass(eq=False)
class _Pair:
    """Sums over tokens of y yᵀ and x yᵀ for a layer's original inputs x and compressed inputs y."""

    second: torch.Tensor | float = 0.0
    cross: torch.Tensor | float = 0.0
    count: int = 0

    def add(self, original: torch.Tensor, compressed: torch.Tensor) -> None:
        x, y = (t.reshape(-1, t.shape[-1]) for t in (original, compressed))
        self.second = self.second + (y.mT @ y).double().cpu()
        self.cross = self.cross + (x.mT @ y).double().cpu()
        self.count += len(x)


@dataclass(eq=False)
class _Inputs:
    """Inputs of every layer of a block during its last run."""

    seen: dict[str, torch.Tensor] = field(default_factory=dict)

    def watch(self, block: torch.nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        def watcher(name: str):  # type: ignore[no-untyped-def]
            def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                self.seen[name] = inputs[0].detach()

            return keep

        return [
            layer.register_forward_pre_hook(watcher(name))
            for name, layer in linear_layers(block).items()
        ]


@dataclass(frozen=True)
class Ready(Weighting):
    """Factors that exist already, for the one rank that a map asks for."""

    factors: Factors

    def spectrum(self, read: Any) -> torch.Tensor:
        """Not known: the weighting depends on the ranks."""
        raise AssertionError("sequential weightings depend on the map")

    def truncated(self, weight: torch.Tensor, rank: int) -> Factors:
        """See `Weighting`."""
        assert rank == self.factors.rank
        return self.factors


@torch.no_grad()
def sequential_weightings(
    source: Source,
    settings: Settings,
    rank_map: RankMap,
    device: str,
    progress: Progress,
) -> Weightings:
    """Weightings of all factored matrices, valid only for this map.

    Two streams of hidden states run side by side: one through the original blocks, one through the
    compressed ones. A block's layers are weighted on the compressed prefix with the block's own
    weights, then compressed, and the second stream continues from there.
    """
    windows, about = calibration_text(source, settings.calibration, device)
    blocks = open_blocks(source, device)
    size = settings.calibration.batch_size
    original, compressed = blocks.start(windows, size), blocks.start(windows, size)
    factored = {m.name: m for m in rank_map.modules if m.factored}
    found: dict[str, Weighting] = {}
    for i, name in enumerate(blocks.names):
        with blocks.block(i) as block:
            pairs = _pairs(blocks, i, block, original, compressed)
            layers = linear_layers(block)
            kept = {}
            for layer, pair in pairs.items():
                module = factored.get(f"{name}.{layer}")
                if module is None:
                    continue
                weight = layers[layer].weight
                kept[layer] = weight.detach().clone()
                factors = _truncated(kept[layer].cpu(), module.rank, pair, settings)
                found[module.name] = Ready(factors)
                weight.data = factors.product().to(weight.device, weight.dtype)
            for passage in compressed:
                passage.hidden = blocks.run(i, block, passage)
            for layer, weight in kept.items():
                layers[layer].weight.data = weight
        progress("calibration", i + 1, len(blocks))
    return Weightings(found.__getitem__, about)


def _pairs(
    blocks: Blocks,
    i: int,
    block: torch.nn.Module,
    original: list[Passage],
    compressed: list[Passage],
) -> dict[str, _Pair]:
    """Run both streams through the original block; the first stream moves on."""
    pairs: dict[str, _Pair] = {name: _Pair() for name in linear_layers(block)}
    inputs = _Inputs()
    handles = inputs.watch(block)
    try:
        for one, other in zip(original, compressed, strict=True):
            one.hidden = blocks.run(i, block, one)
            first = dict(inputs.seen)
            blocks.run(i, block, other)
            for name, pair in pairs.items():
                pair.add(first[name], inputs.seen[name])
    finally:
        for handle in handles:
            handle.remove()
    return pairs


def _truncated(weight: torch.Tensor, rank: int, pair: _Pair, settings: Settings) -> Factors:
    """The product of a given rank that is nearest to the original outputs."""
    assert isinstance(pair.second, torch.Tensor)
    assert isinstance(pair.cross, torch.Tensor)
    root = covariance_root(pair.second / pair.count, shrinkage=settings.shrink)
    crossed = weight.double() @ (pair.cross / pair.count)
    towards = root.solved(crossed.mT).mT
    rows, cols = weight.shape
    if rows <= cols:
        whitened = root.adjoint_times(towards.mT)
        side = decompose(whitened.mT @ whitened, None, of_outputs=True)
    else:
        side = decompose(towards.mT @ towards, root, of_outputs=False)
    return side.truncated(towards, rank)

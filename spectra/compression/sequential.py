r"""Weightings on the outputs of compressed layers: each block is calibrated after those before it.

With original inputs x and inputs x' from the compressed prefix, :math:`\|Wx - W'x'\|` is least,
without a limit on the rank, for :math:`W' = W\,E[xx'^T]\,E[x'x'^T]^{-1}`; under a limit, for its
truncation whitened by :math:`E[x'x'^T]`.
"""

from dataclasses import dataclass, field

import torch

from spectra.allocation.rankmap import RankMap
from spectra.calibration.blocks import Blocks, Passage, open_blocks
from spectra.calibration.statistics import linear_layers
from spectra.compression.calibrated import calibration_text
from spectra.compression.settings import Settings
from spectra.compression.truncation import FLOOR, covariance_root
from spectra.compression.weighting import Weighting, Weightings
from spectra.machine.progress import Progress
from spectra.models.source import Source


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
                weighting = _weighting(pair, settings)
                found[module.name] = weighting
                weight = layers[layer].weight
                kept[layer] = weight.detach().clone()
                product = weighting.truncated(kept[layer].cpu(), module.rank).product()
                weight.data = product.to(weight.device, weight.dtype)
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


def _weighting(pair: _Pair, settings: Settings) -> Weighting:
    assert isinstance(pair.second, torch.Tensor)
    assert isinstance(pair.cross, torch.Tensor)
    second = pair.second / pair.count
    root = covariance_root(second, shrinkage=settings.shrink)
    floor = FLOOR * float(second.diagonal().mean()) * len(second)
    regular = second + floor * torch.eye(len(second), dtype=second.dtype)
    towards = torch.linalg.solve(regular, pair.cross.mT / pair.count).mT
    return Weighting(root, towards=towards)

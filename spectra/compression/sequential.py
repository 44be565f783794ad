r"""Factors on the outputs of compressed layers: each block is calibrated after those before it.

With original inputs x and inputs x' from the compressed prefix, :math:`\|Wx - W'x'\|` is least,
without a limit on the rank, for :math:`W' = W\,E[xx'^T]\,E[x'x'^T]^{-1}`; under a limit, for its
truncation whitened by :math:`E[x'x'^T]`. That changes what is approximated, so the moments of the
longer side are needed, too. Experts get other tokens once their router's input has changed: their
x' have no x, and what is approximated is W itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spectra.allocation.rankmap import Module, RankMap
from spectra.calibration.blocks import Blocks, Passage, open_blocks
from spectra.calibration.hidden import COMPRESSED, HIDDEN
from spectra.calibration.statistics import add_products, input_of, linear_layers, whole_of
from spectra.compression.calibrated import calibration_text, finite_sha256
from spectra.compression.scratch import Scratch
from spectra.compression.settings import Settings
from spectra.compression.space import factors_bytes, require_space, states_bytes
from spectra.compression.truncation import covariance_root, decompose
from spectra.compression.weighting import UNREACHED, Weighting, Weightings
from spectra.machine.progress import Progress
from spectra.models.parts import routed_layers
from spectra.models.source import Source
from spectra.storages.stored import Factors
from spectra_data.errors import InputError


@dataclass(eq=False)
class _Pair:
    """Sums over tokens for original inputs x and inputs y behind compressed blocks."""

    lower: torch.Tensor
    """Sum of y yᵀ, of which the lower half is filled: (features, features), float64."""
    cross: torch.Tensor
    """Sum of x yᵀ: (features, features), float64."""
    count: int = 0

    @classmethod
    def like(cls, x: torch.Tensor) -> "_Pair":
        size = (x.shape[-1], x.shape[-1])
        return cls(
            torch.zeros(size, dtype=torch.float64, device=x.device),
            torch.zeros(size, dtype=torch.float64, device=x.device),
        )

    def add(self, original: torch.Tensor, compressed: torch.Tensor) -> None:
        x, y = (t.reshape(-1, t.shape[-1]).float() for t in (original, compressed))
        add_products(self.lower, y)
        self.cross += x.mT @ y
        self.count += len(x)


@dataclass(frozen=True)
class Ready(Weighting):
    """Factors that are on disk, for the one rank that a map asks for."""

    read: Callable[[], Factors]

    def spectrum(self, read: Any) -> torch.Tensor:
        """Not known: the weighting depends on the ranks."""
        raise AssertionError("sequential weightings depend on the map")

    def truncated(self, weight: torch.Tensor, rank: int) -> Factors:
        """See `Weighting`."""
        factors = self.read()
        assert factors.rank == rank
        return factors


def sequential_weightings(
    source: Source,
    settings: Settings,
    rank_map: RankMap,
    device: str,
    progress: Progress,
    *,
    keep: bool = False,
) -> Weightings:
    """Factors of all factored matrices, valid only for this map.

    Two streams of hidden states run side by side: one through the original blocks, one through the
    compressed ones. A block's layers are weighted on the compressed prefix with the block's own
    weights, then compressed, and the second stream continues from there.

    Parameters
    ----------
    source, settings, device, progress, keep
        See `calibrate`.
    rank_map
        Map of what will be stored.
    """
    windows, about = calibration_text(source, settings.calibration, device, progress)
    factored = {m.name: m for m in rank_map.modules if m.factored}
    scratch = Scratch(
        {
            "checkpoint": source.checkpoint.identity,
            "weights": finite_sha256(source.checkpoint),
            "tokens": about["tokens_sha256"],
            "weighting": settings.weighting(),
            "ranks": {name: module.rank for name, module in factored.items()},
        }
    )
    if any(scratch.reached(m.block) is None for m in source.checkpoint.matrices):
        with scratch.held():
            needed = factors_bytes(factored.values()) + 4 * states_bytes(windows, source)
            require_space(scratch.path, needed, scratch.bytes, "calibration for sequential")
            blocks = open_blocks(source, device)
            _Sequence(blocks, factored, settings, scratch, progress).run(windows)
    return Weightings(
        lambda name: Ready(lambda: scratch.factors(name)),
        about,
        close=lambda: None if keep else scratch.tidy(),
    )


@dataclass(frozen=True)
class _Sequence:
    """The compression of blocks, one after another."""

    blocks: Blocks
    factored: Mapping[str, Module]
    settings: Settings
    scratch: Scratch
    progress: Progress

    @torch.no_grad()
    def run(self, windows: torch.Tensor) -> None:
        """Write the factors of all blocks, from the first that is not done."""
        blocks, states, size = (
            self.blocks,
            self.scratch.states,
            self.settings.calibration.batch_size,
        )
        original, compressed = blocks.start(windows, size), blocks.start(windows, size)
        streams = {HIDDEN: original, COMPRESSED: compressed}
        done = [self.scratch.reached(name) is not None for name in blocks.names]
        first = states.resumed(list(streams), done)
        for kind, stream in streams.items():
            for passage in stream if first else ():
                passage.hidden = states.of(kind, first, passage.windows).to(blocks.device)
        for i in range(first, len(blocks)):
            with blocks.block(i) as block:
                self._compress(i, block, original, compressed)
            if i + 1 < len(blocks):
                for kind, stream in streams.items():
                    states.keep(kind, i + 1, [passage.hidden for passage in stream])
            for kind in streams:
                states.drop(kind, i)
            self.progress("calibration", i + 1, len(blocks))
        states.clear()

    def _compress(
        self,
        i: int,
        block: torch.nn.Module,
        original: Sequence[Passage],
        compressed: Sequence[Passage],
    ) -> None:
        """Write the factors of a block; move both streams through it."""
        name, layers = self.blocks.names[i], linear_layers(block)
        wanted = {
            layer: module
            for layer in layers
            if (module := self.factored.get(f"{name}.{layer}")) is not None
        }
        pairs = self._pairs(i, block, original, compressed, wanted)
        kept = {}
        for layer, module in wanted.items():
            if layer not in pairs:
                raise InputError(f"{module.name}: {UNREACHED}")
            weight = layers[layer].weight
            kept[layer] = weight.detach().clone()
            factors = _truncated(kept[layer], module.rank, pairs[layer], self.settings)
            self.scratch.save_factors(module.name, factors)
            weight.data = factors.product().to(weight.device, weight.dtype)
        for passage in compressed:
            passage.hidden = self.blocks.run(i, block, passage)
        for layer, weight in kept.items():
            layers[layer].weight.data = weight
        self.scratch.finish(name, [f"{name}.{layer}" for layer in wanted])

    def _pairs(
        self,
        i: int,
        block: torch.nn.Module,
        original: Sequence[Passage],
        compressed: Sequence[Passage],
        wanted: Mapping[str, Module],
    ) -> dict[str, _Pair]:
        """Sums by layer, from both streams in the original block; the first stream moves on.

        Layers that read the same input share theirs.
        """
        layers, routed = linear_layers(block), routed_layers(block)
        pairs: dict[str, _Pair] = {}
        seen: dict[str, torch.Tensor] = {}

        def watcher(name: str) -> Any:
            def keep(_: torch.nn.Module, inputs: Any, named: Any) -> None:
                seen[name] = input_of(inputs, named).detach()

            return keep

        handles = [
            layers[name].register_forward_pre_hook(watcher(name), with_kwargs=True)
            for name in wanted
        ]
        try:
            for one, other in zip(original, compressed, strict=True):
                seen.clear()  # of experts that this passage may not reach
                one.hidden = self.blocks.run(i, block, one)
                first = dict(seen)
                seen.clear()
                self.blocks.run(i, block, other)
                added: dict[int, _Pair] = {}
                for name, y in seen.items():
                    if id(y) in added:
                        pairs[name] = added[id(y)]
                        continue
                    added[id(y)] = pairs.setdefault(name, _Pair.like(y))
                    added[id(y)].add(y if name in routed else first[name], y)
        finally:
            for handle in handles:
                handle.remove()
        return pairs


def _truncated(weight: torch.Tensor, rank: int, pair: _Pair, settings: Settings) -> Factors:
    """The product of a given rank that is nearest to the original outputs."""
    root = covariance_root(whole_of(pair.lower) / pair.count, shrinkage=settings.shrink)
    towards = root.solved((weight.double() @ pair.cross / pair.count).mT).mT
    rows, cols = weight.shape
    if rows <= cols:
        whitened = root.adjoint_times(towards.mT)
        side = decompose(whitened.mT @ whitened, None, of_outputs=True)
    else:
        side = decompose(towards.mT @ towards, root, of_outputs=False)
    return side.truncated(towards, rank)

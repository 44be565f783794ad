"""Pruning of a model's blocks, one after another."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from spectra.calibration.blocks import Blocks
from spectra.calibration.statistics import (
    INPUTS,
    BlockStatistics,
    Moments,
    linear_layers,
    watching,
)
from spectra.pruning.methods import METHODS
from spectra.pruning.sparsity import Pattern, magnitude, sparsegpt, wanda
from spectra_data.errors import InputError


@dataclass(frozen=True)
class Pruner:
    """Method, pattern and matrices of a pruning.

    Raises
    ------
    InputError
        When there is no such method.
    """

    method: str
    pattern: Pattern
    names: frozenset[str]
    """Names of the matrices to prune."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"no method {self.method!r}; there are: {', '.join(METHODS)}")

    def pruned(
        self, name: str, weight: torch.Tensor, inputs: Moments | None = None
    ) -> torch.Tensor:
        """The pruned weight: (rows, cols).

        Parameters
        ----------
        name
            Name of the matrix, for messages.
        weight
            Weight, (rows, cols).
        inputs
            Moments of its inputs; not needed for ``magnitude``.

        Raises
        ------
        InputError
            When the weight cannot be pruned in this way; the message has its name.
        """
        try:
            if self.method == "magnitude":
                result = magnitude(weight, self.pattern)
            else:
                assert inputs is not None
                if self.method == "wanda":
                    result = wanda(weight, inputs.variances, self.pattern)
                else:
                    result = sparsegpt(weight, inputs.covariance, self.pattern)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        if not torch.isfinite(result).all():
            raise InputError(f"{name}: its weight, before or after pruning, is not finite")
        return result

    @torch.no_grad()
    def blocks(
        self,
        blocks: Blocks,
        windows: torch.Tensor,
        batch_size: int,
        progress: Callable[[str, int, int], None] = lambda stage, done, count: None,
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Prune block after block in place, each on the outputs of the pruned ones before it.

        Parameters
        ----------
        blocks
            Blocks of the model; if they are streamed, pruned weights are freed with their block.
        windows
            Token ids, (windows, length).
        batch_size
            Number of windows at a time.
        progress
            Called with a stage, the number of blocks done, and their total.

        Yields
        ------
        The pruned weights of a block by matrix name, without those of layers that the windows
        never reached.
        """
        passages = blocks.start(windows, batch_size)
        for i, name in enumerate(blocks.names):
            statistics = BlockStatistics()
            with blocks.block(i) as block:
                layers = {f"{name}.{k}": v for k, v in linear_layers(block).items()}
                wanted = {k: v for k, v in layers.items() if k in self.names}
                inner = {k.removeprefix(f"{name}."): v for k, v in wanted.items()}
                wanted_moments = dict.fromkeys(
                    inner, {INPUTS} if self.method == "sparsegpt" else ()
                )
                with watching(inner, statistics, wanted_moments):
                    for passage in passages:
                        blocks.run(i, block, passage)
                pruned = dict(self._pruned(name, wanted, statistics))
                for passage in passages:
                    passage.hidden = blocks.run(i, block, passage)
            progress("blocks pruned", i + 1, len(blocks))
            yield pruned

    def _pruned(
        self, block: str, layers: Mapping[str, torch.nn.Linear], statistics: BlockStatistics
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, module in layers.items():
            layer = name.removeprefix(f"{block}.")
            if layer not in statistics.groups:
                continue
            weight = module.weight.detach()
            result = self.pruned(name, weight, statistics.of(layer))
            module.weight.data = result
            yield name, result

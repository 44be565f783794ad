"""Pruning of a model's blocks, one after another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from spectra.calibration.blocks import Blocks, Passage
from spectra.calibration.hidden import HIDDEN, HiddenStates
from spectra.calibration.statistics import (
    INPUTS,
    BlockStatistics,
    Moments,
    linear_layers,
    watching,
)
from spectra.machine.progress import Progress, silent
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
        progress: Progress = silent,
        *,
        states: HiddenStates | None = None,
        done: Callable[[str], bool] = lambda block: False,
    ) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
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
        states
            Where hidden states are kept, from which an interrupted call resumes; None for nowhere.
        done
            Whether a block, by its name, was yielded and kept before the interruption.

        Yields
        ------
        The name of a block, and its pruned weights by matrix name, without those of layers that the
        windows never reached.
        """
        passages = blocks.start(windows, batch_size)
        first = 0
        if states is not None:
            first = states.resumed([HIDDEN], [done(name) for name in blocks.names])
        for passage in passages if first else ():
            assert states is not None
            passage.hidden = states.of(HIDDEN, first, passage.windows).to(blocks.device)
        for i in range(first, len(blocks)):
            name = blocks.names[i]
            with blocks.block(i) as block:
                yield name, self._pruned_block(blocks, i, block, passages)
                for passage in passages:
                    passage.hidden = blocks.run(i, block, passage)
            if states is not None and i + 1 < len(blocks):
                states.keep(HIDDEN, i + 1, [passage.hidden for passage in passages])
                states.drop(HIDDEN, i)
            progress("blocks pruned", i + 1, len(blocks))
        if states is not None:
            states.clear()

    def _pruned_block(
        self, blocks: Blocks, i: int, block: torch.nn.Module, passages: Sequence[Passage]
    ) -> dict[str, torch.Tensor]:
        """Prune the layers of a block in place, by the inputs that they have now."""
        statistics, name = BlockStatistics(), blocks.names[i]
        wanted = {
            layer: module
            for layer, module in linear_layers(block).items()
            if f"{name}.{layer}" in self.names
        }
        second = {INPUTS} if self.method == "sparsegpt" else set()
        with watching(wanted, statistics, dict.fromkeys(wanted, second)):
            for passage in passages:
                blocks.run(i, block, passage)
        return dict(self._pruned(name, wanted, statistics))

    def _pruned(
        self, block: str, layers: Mapping[str, torch.nn.Linear], statistics: BlockStatistics
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for layer, module in layers.items():
            if layer not in statistics.groups:
                continue
            name = f"{block}.{layer}"
            result = self.pruned(name, module.weight.detach(), statistics.of(layer))
            module.weight.data = result
            yield name, result

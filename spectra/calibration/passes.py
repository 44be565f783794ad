"""Forward and backward passes of calibration windows through the blocks, with statistics.

A pass yields each block with its weights in memory and its statistics complete. What the block's
successor needs is on disk before that is read, so that a pass that was interrupted resumes at the
block that was under way.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch

from spectra.calibration.blocks import Blocks, Passage
from spectra.calibration.draws import drawn
from spectra.calibration.hidden import GRADIENT, HIDDEN, HiddenStates
from spectra.calibration.statistics import BlockStatistics, linear_layers, watching
from spectra.machine.progress import Progress

STRIDE = 1_000_003
"""Distance between the random streams of two seeds."""

Wanted = Callable[[torch.nn.Linear], Collection[str]]
"""The second moments that are wanted of a layer; see `watching`."""


@dataclass(frozen=True)
class Seen:
    """A block that a pass went through."""

    index: int
    name: str
    block: torch.nn.Module
    """The block, with its weights until the next is asked for."""
    statistics: BlockStatistics


@dataclass(frozen=True)
class Pass:
    """What a pass goes through, and where it keeps what it may resume from.

    Parameters
    ----------
    blocks
        Blocks of the model.
    windows
        Token ids, (windows, length).
    wanted
        Second moments that are wanted of a layer.
    states
        Hidden states between blocks.
    done
        Whether a block, by its name, needs no statistics any more.
    batch_size
        Number of windows at a time.
    seed
        Seed of the tokens that are drawn for the loss.
    progress
        Called with the stage, the number of blocks done, and their total.
    """

    blocks: Blocks
    windows: torch.Tensor
    wanted: Wanted
    states: HiddenStates
    done: Callable[[str], bool]
    batch_size: int
    seed: int
    progress: Progress

    @torch.no_grad()
    def forwards(self) -> Iterator[Seen]:
        """Statistics of inputs and outputs, block by block; only of blocks that are not done."""
        blocks, states = self.blocks, self.states
        passages = blocks.start(self.windows, self.batch_size)
        first = states.resumed([HIDDEN], [self.done(name) for name in blocks.names])
        for i in range(first, len(blocks)):
            with blocks.block(i) as block:
                statistics = BlockStatistics()
                done = self.done(blocks.names[i])
                layers = {} if done else linear_layers(block)
                with watching(layers, statistics, self._wanted_of(layers)):
                    outputs = []
                    for passage in passages:
                        if first and i == first:
                            passage.hidden = states.of(HIDDEN, i, passage.windows).to(blocks.device)
                        passage.hidden = blocks.run(i, block, passage)
                        outputs.append(passage.hidden)
                if not done:
                    yield Seen(i, blocks.names[i], block, statistics)
            if i + 1 < len(blocks):
                states.keep(HIDDEN, i + 1, outputs)
                states.drop(HIDDEN, i)
            self.progress("calibration", i + 1, len(blocks))
        states.clear()

    def backwards(self) -> Iterator[Seen]:
        """Statistics of inputs and outputs, and of the loss's gradients, from the last block on.

        The loss is the cross-entropy, summed over all positions, against tokens that are drawn from
        the model's predictions: the expectation of its gradient's second moments is the Fisher
        information itself. The text's own tokens yield it only where the model is right (Kunstner,
        Hennig and Balles 2019, "Limitations of the empirical Fisher approximation").
        """
        blocks, states = self.blocks, self.states
        passages = blocks.start(self.windows, self.batch_size)
        last = self._gradients_at(passages)
        for i in reversed(range(last)):
            statistics = BlockStatistics()
            gradients: list[torch.Tensor] = []
            with blocks.block(i) as block:
                done = self.done(blocks.names[i])
                layers = {} if done else linear_layers(block)
                with watching(layers, statistics, self._wanted_of(layers)):
                    for passage in passages:
                        hidden = states.of(HIDDEN, i, passage.windows).to(blocks.device)
                        hidden.requires_grad_()
                        later = states.of(GRADIENT, i + 1, passage.windows).to(blocks.device)
                        with torch.enable_grad():
                            out = blocks.call(i, block, hidden, passage)
                            gradients += torch.autograd.grad(out, hidden, later)
                if not done:
                    yield Seen(i, blocks.names[i], block, statistics)
            states.keep(GRADIENT, i, gradients)
            states.drop(GRADIENT, i + 1)
            states.drop(HIDDEN, i)
            self.progress("backwards", len(blocks) - i, len(blocks))
        states.clear()

    def _wanted_of(self, layers: Mapping[str, torch.nn.Linear]) -> dict[str, Collection[str]]:
        return {name: self.wanted(layer) for name, layer in layers.items()}

    def _gradients_at(self, passages: list[Passage]) -> int:
        """The block whose output has gradients on disk, so that those before it are left.

        Without any, all blocks run forwards first.
        """
        blocks, states = self.blocks, self.states
        count = len(blocks)
        held = [i for i in range(count, 0, -1) if states.has(GRADIENT, i)]
        if held and all(states.has(HIDDEN, i) for i in range(held[-1])):
            return held[-1]
        first = next((i for i in range(1, count + 1) if not states.has(HIDDEN, i)), count + 1) - 1
        if not states.has(HIDDEN, 0):
            first = 0
            states.keep(HIDDEN, 0, [passage.hidden for passage in passages])
        self._run_forwards(passages, first)
        gradients = []
        for passage in passages:
            passage.hidden = states.of(HIDDEN, count, passage.windows).to(blocks.device)
            gradients.append(self._loss_gradient(passage))
        states.keep(GRADIENT, count, gradients)
        states.drop(HIDDEN, count)
        return count

    @torch.no_grad()
    def _run_forwards(self, passages: list[Passage], first: int) -> None:
        """Run all blocks from the first whose output is not on disk."""
        for i in range(first, len(self.blocks)):
            outputs = []
            with self.blocks.block(i) as block:
                for passage in passages:
                    hidden = self.states.of(HIDDEN, i, passage.windows)
                    passage.hidden = hidden.to(self.blocks.device)
                    outputs.append(self.blocks.run(i, block, passage).cpu())
            self.states.keep(HIDDEN, i + 1, outputs)
            self.progress("forwards", i + 1, len(self.blocks))

    def _loss_gradient(self, passage: Passage) -> torch.Tensor:
        """Gradient of the summed loss with respect to the last block's output.

        The tokens drawn for a window depend only on the seed and the window's number.
        """
        gradients: list[torch.Tensor] = []
        for row, number in enumerate(passage.windows):  # one at a time: logits are large
            hidden = passage.hidden[row : row + 1].detach().requires_grad_()
            tokens = passage.tokens[row : row + 1]
            with torch.enable_grad():
                one = Passage(range(number, number + 1), tokens, hidden, passage.calls)
                logits = self.blocks.logits(hidden, one)[0]
            by_logits = logits.detach().float().softmax(dim=-1)  # (length, vocabulary)
            generator = torch.Generator().manual_seed(self.seed * STRIDE + number)
            uniform = torch.rand(len(by_logits), generator=generator, dtype=torch.float64)
            by_logits[torch.arange(len(by_logits)), drawn(by_logits, uniform)] -= 1
            gradients += torch.autograd.grad(logits, hidden, by_logits.to(logits.dtype))
        return torch.cat(gradients)

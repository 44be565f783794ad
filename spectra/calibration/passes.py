"""Forward and backward passes of calibration windows through the blocks, with statistics."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from spectra.calibration.blocks import Blocks, Passage
from spectra.calibration.statistics import (
    BlockStatistics,
    linear_layers,
    watching_gradients,
    watching_inputs,
)
from spectra.machine.progress import Progress
from spectra_data.errors import InputError

IN_MEMORY = 4e9
"""Bytes of hidden states between blocks up to which they stay in memory; more go to files."""

STRIDE = 1_000_003
"""Distance between the random streams of two seeds."""


@dataclass(frozen=True)
class Seen:
    """Statistics of one block."""

    index: int
    name: str
    statistics: BlockStatistics


@torch.no_grad()
def forward_pass(
    blocks: Blocks, windows: torch.Tensor, *, batch_size: int = 4, progress: Progress
) -> Iterator[Seen]:
    """Statistics of the inputs, block by block.

    Parameters
    ----------
    blocks
        Blocks of the model.
    windows
        Token ids, (windows, length).
    batch_size
        Number of windows at a time.
    progress
        Called with the stage, the number of blocks done, and their total.
    """
    passages = blocks.start(windows, batch_size)
    for i, name in enumerate(blocks.names):
        statistics = BlockStatistics()
        with blocks.block(i) as block, watching_inputs(linear_layers(block), statistics):
            for passage in passages:
                passage.hidden = blocks.run(i, block, passage)
        progress("calibration", i + 1, len(blocks))
        yield Seen(i, name, statistics)


def backward_pass(
    blocks: Blocks,
    windows: torch.Tensor,
    *,
    batch_size: int = 4,
    seed: int = 0,
    progress: Progress,
) -> Iterator[Seen]:
    """Statistics of inputs, and of the loss's gradients at outputs, starting at the last block.

    The loss is the cross-entropy, summed over all positions, against tokens that are drawn from the
    model's predictions: the expectation of its gradient's second moments is the Fisher information
    itself. The text's own tokens yield it only where the model is right (Kunstner, Hennig and
    Balles 2019, "Limitations of the empirical Fisher approximation").

    Parameters
    ----------
    blocks, windows, batch_size, progress
        See `forward_pass`.
    seed
        Seed of the drawn tokens.
    """
    count = len(blocks)
    passages = blocks.start(windows, batch_size)
    with tempfile.TemporaryDirectory(prefix="spectra-") as folder:
        between = _Hidden(count, passages, Path(folder))
        with torch.no_grad():
            for i in range(count):
                with blocks.block(i) as block:
                    for number, passage in enumerate(passages):
                        between.keep(i, number, passage.hidden)
                        passage.hidden = blocks.run(i, block, passage)
                progress("forwards", i + 1, count)
        gradients = [
            _loss_gradient(blocks, passage, seed, number * batch_size)
            for number, passage in enumerate(passages)
        ]
        for i in reversed(range(count)):
            statistics = BlockStatistics()
            with blocks.block(i) as block:
                layers = linear_layers(block)
                with watching_inputs(layers, statistics), watching_gradients(layers, statistics):
                    for number, passage in enumerate(passages):
                        hidden = between.of(i, number).to(blocks.device).requires_grad_()
                        with torch.enable_grad():
                            out = blocks.call(i, block, hidden, passage)
                            (gradients[number],) = torch.autograd.grad(
                                out, hidden, gradients[number]
                            )
            progress("backwards", count - i, count)
            yield Seen(i, blocks.names[i], statistics)


def _loss_gradient(blocks: Blocks, passage: Passage, seed: int, first: int) -> torch.Tensor:
    """Gradient of the summed loss with respect to the last block's output.

    The tokens drawn for a window depend only on the seed and the window's number.
    """
    gradients = []
    for row in range(len(passage.tokens)):  # one window at a time: logits are large
        one = Passage(passage.tokens[row : row + 1], passage.hidden[row : row + 1], passage.calls)
        hidden = one.hidden.detach().requires_grad_()
        with torch.enable_grad():
            logits = blocks.logits(hidden, one)[0].float()  # (length, vocabulary)
            probabilities = logits.detach().softmax(dim=-1).cpu()
            if not torch.isfinite(probabilities).all():
                raise InputError("the model's predictions on the calibration text are not finite")
            generator = torch.Generator().manual_seed(seed * STRIDE + first + row)
            drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            loss = F.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, hidden)
        gradients.append(gradient)
    return torch.cat(gradients)


class _Hidden:
    """The inputs of every block, by passage: in memory or, if they are large, in files."""

    def __init__(self, blocks: int, passages: list[Passage], folder: Path) -> None:
        shapes = [tuple(passage.hidden.shape) for passage in passages]
        total = 4 * blocks * sum(int(np.prod(shape)) for shape in shapes)
        self._kept: dict[tuple[int, int], torch.Tensor] = {}
        self._folder = folder if total > IN_MEMORY else None

    def keep(self, block: int, passage: int, hidden: torch.Tensor) -> None:
        value = hidden.detach().cpu()
        if self._folder is None:
            self._kept[block, passage] = value
        else:
            np.save(self._folder / f"{block}-{passage}.npy", value.numpy())

    def of(self, block: int, passage: int) -> torch.Tensor:
        """The input of a block; it can be read only once."""
        if self._folder is None:
            return self._kept.pop((block, passage))
        path = self._folder / f"{block}-{passage}.npy"
        value = torch.from_numpy(np.load(path))
        path.unlink()
        return value

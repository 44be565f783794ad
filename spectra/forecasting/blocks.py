"""One block of a model, run with made-up weights: what a token costs in its real shapes."""

from functools import cached_property
from typing import Any

import torch

from spectra.calibration.blocks import Blocks, Passage
from spectra.checkpoint.tensors import NAMES, StoredTensor
from spectra.forecasting.costs import timed
from spectra.models.empty import empty_model
from spectra.models.loading import Loaded
from spectra.models.lowrank import put_layers
from spectra.models.parts import take_apart
from spectra.models.places import undivided
from spectra.models.source import Source

FLOPS = 5e10
"""Most products in a sample of a block: about half a second on two cores."""
CACHE_BYTES = 64 << 20
"""Memory that is touched between two runs of a token, whose weights are no longer in any cache."""


class _MadeUp:
    """Tensors of the shapes of a model's parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self.tensors = {
            name: StoredTensor(name, shape, NAMES[torch.float32], "")
            for name, shape in shapes.items()
        }

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        return torch.full(self.tensors[name].shape, 0.01)


class SampleBlock:
    """A block from the middle of a model, with all that is outside its blocks.

    Parameters
    ----------
    source
        Checkpoint, of which only the configuration is read.
    dtype
        Precision of its weights.
    apart
        Whether every matrix has a linear layer of its own, as in calibration.
    """

    def __init__(
        self, source: Source, dtype: torch.dtype = torch.float32, *, apart: bool = False
    ) -> None:
        model: Any = empty_model(source)
        if source.is_compressed:
            put_layers(model, source.compressed)
        if apart:
            take_apart(model, undivided(source))
        made_up = _MadeUp(model)
        blocks = {matrix.block.rpartition(".")[0] for matrix in source.checkpoint.matrices}
        for name in made_up.tensors:
            if not any(name.startswith(f"{path}.") for path in blocks):
                owner, _, last = name.rpartition(".")
                module = model.get_submodule(owner)
                value = torch.zeros(getattr(module, last).shape, dtype=dtype)
                setattr(module, last, torch.nn.Parameter(value, requires_grad=False))
        model.tie_weights()
        self.model = model
        self.blocks = Blocks(Loaded(model, made_up, dtype))
        self._middle = len(self.blocks) // 2

    @cached_property
    def outside(self) -> int:
        """Bytes of everything outside the blocks."""
        return self._bytes([p for p in self.model.parameters() if not p.is_meta])

    @cached_property
    def inside(self) -> int:
        """Bytes of a block."""
        with self.blocks.block(self._middle) as block:
            return self._bytes(list(block.parameters()))

    @staticmethod
    def _bytes(parameters: list[torch.nn.Parameter]) -> int:
        return sum({id(p): p.numel() * p.element_size() for p in parameters}.values())

    def tokens(self, length: int) -> int:
        """Tokens of a sample of windows of some length."""
        numbers = self.inside // 4
        return int(max(32, min(length, FLOPS // (2 * numbers), 1024)))

    @torch.no_grad()
    def forward(self, length: int) -> float:
        """Seconds of a block's forward pass for a token, in windows of some length."""
        count = self.tokens(length)
        with self.blocks.block(self._middle) as block:
            passage = self._passage(1, count)
            return timed(lambda: self.blocks.run(self._middle, block, passage)) / count

    def backward(self, length: int) -> float:
        """Seconds of a block's forward and backward pass for a token."""
        count = self.tokens(length)
        with self.blocks.block(self._middle) as block:
            passage = self._passage(1, count)

            def run() -> None:
                hidden = passage.hidden.detach().requires_grad_()
                out = self.blocks.call(self._middle, block, hidden, passage)
                torch.autograd.grad(out, hidden, torch.ones_like(out))

            return timed(run) / count

    @torch.no_grad()
    def step(self, rows: int) -> float:
        """Seconds of a block's forward pass for one token in each of some rows."""
        other = torch.zeros(CACHE_BYTES // 4)
        with self.blocks.block(self._middle) as block:
            passage = self._passage(rows, 1)
            return timed(
                lambda: self.blocks.run(self._middle, block, passage), lambda: other.add_(1)
            )

    @torch.no_grad()
    def head(self, count: int, *, loss: bool = False) -> float:
        """Seconds for a token of the last norm and head; with the loss's gradient if wanted."""
        count = min(count, 256)
        passage = self._passage(1, count)
        hidden = passage.hidden

        def run() -> None:
            if not loss:
                self.blocks.logits(hidden, passage).float().log_softmax(dim=-1)
                return
            with torch.enable_grad():
                given = hidden.detach().requires_grad_()
                logits = self.blocks.logits(given, passage)
            by_logits = logits.detach().float().softmax(dim=-1)
            torch.autograd.grad(logits, given, by_logits.to(logits.dtype))

        return timed(run) / count

    def _passage(self, rows: int, length: int) -> Passage:
        (passage,) = self.blocks.start(torch.zeros(rows, length, dtype=torch.long), rows)
        return passage

    def layers(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the linear layers of the block, by name."""
        block = self.blocks.model.get_submodule(self.blocks.names[self._middle])
        return {
            name: (m.out_features, m.in_features)
            for name, m in block.named_modules()
            if isinstance(m, torch.nn.Linear)
        }

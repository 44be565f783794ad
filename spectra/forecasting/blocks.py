"""One block of a model, run with made-up weights: what a token costs in its real shapes."""

import copy
from typing import Any

import torch

from spectra.calibration.blocks import Blocks, Passage
from spectra.checkpoint.tensors import NAMES, StoredTensor
from spectra.forecasting.costs import timed
from spectra.machine.memory import free_memory
from spectra.models.empty import empty_model
from spectra.models.loading import Loaded
from spectra.models.lowrank import put_layers
from spectra.models.parts import take_apart
from spectra.models.places import undivided
from spectra.models.source import Source
from spectra.models.streamed import blocks_of
from spectra_data.errors import InputError

FLOPS = 5e10
"""Most products in a sample of a block: about half a second on two cores."""
CACHE_BYTES = 64 << 20
"""Memory that is touched between two runs of a token, whose weights are no longer in any cache."""
SHARE = 0.25
"""Share of the free memory that the weights of a sample may take; a larger block is halved."""
WIDTHS = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads",
    "num_key_value_heads",
)  # fmt: skip


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
        whole: Any = empty_model(source)
        if source.is_compressed:
            put_layers(whole, source.compressed)
        if apart:
            take_apart(whole, undivided(source))
        self._width = dtype.itemsize
        path, blocks = blocks_of(whole)
        self._middle, self.count = len(blocks) // 2, len(blocks)
        inside = dict(blocks[self._middle].named_parameters())
        self.inside = self._width * sum(p.numel() for p in inside.values())
        """Bytes of a block."""
        outside = (p for n, p in whole.named_parameters() if not n.startswith(f"{path}."))
        self.outside = self._width * sum({id(p): p.numel() for p in outside}.values())
        """Bytes of everything outside the blocks."""
        layers = [m for m in blocks[self._middle].modules() if isinstance(m, torch.nn.Linear)]
        self.outputs = sum(m.out_features for m in layers)
        """Outputs of all linear layers of a block."""
        model, self._factor = whole, 1.0
        smaller, halvings = source.config, 0
        while self.inside / self._factor > SHARE * free_memory(torch.device("cpu")):
            smaller, halvings = _halved(smaller), halvings + 1
            self._factor = 4.0**halvings
            model = _of_config(source, smaller)
        self._narrower = 2.0**halvings
        for module in model.modules():  # the orders of pivoted layers
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:
                    module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
        made_up = _MadeUp(model)
        for name in made_up.tensors:
            if not name.startswith(f"{path}."):
                owner, _, last = name.rpartition(".")
                module = model.get_submodule(owner)
                value = torch.zeros(getattr(module, last).shape, dtype=dtype)
                setattr(module, last, torch.nn.Parameter(value, requires_grad=False))
        model.tie_weights()
        self.blocks = Blocks(Loaded(model, made_up, dtype))

    def tokens(self, length: int) -> int:
        """Tokens of a sample of windows of some length."""
        numbers = self.inside / self._factor / self._width
        return int(max(32, min(length, FLOPS // (2 * numbers), 1024)))

    @torch.no_grad()
    def forward(self, length: int) -> float:
        """Seconds of a block's forward pass for a token, in windows of some length."""
        count = self.tokens(length)
        with self.blocks.block(self._middle) as block:
            passage = self._passage(1, count)
            found = timed(lambda: self.blocks.run(self._middle, block, passage)) / count
        return found * self._factor

    def backward(self, length: int) -> float:
        """Seconds of a block's forward and backward pass for a token."""
        count = self.tokens(length)
        with self.blocks.block(self._middle) as block:
            passage = self._passage(1, count)

            def run() -> None:
                hidden = passage.hidden.detach().requires_grad_()
                out = self.blocks.call(self._middle, block, hidden, passage)
                torch.autograd.grad(out, hidden, torch.ones_like(out))

            found = timed(run) / count
        return found * self._factor

    @torch.no_grad()
    def step(self, rows: int) -> float:
        """Seconds of a block's forward pass for one token in each of some rows."""
        other = torch.zeros(CACHE_BYTES // 4)
        with self.blocks.block(self._middle) as block:
            passage = self._passage(rows, 1)
            found = timed(
                lambda: self.blocks.run(self._middle, block, passage), lambda: other.add_(1)
            )
        return found * self._factor

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

        return timed(run) / count * self._narrower

    def _passage(self, rows: int, length: int) -> Passage:
        (passage,) = self.blocks.start(torch.zeros(rows, length, dtype=torch.long), rows)
        return passage


def _of_config(source: Source, config: Any) -> Any:
    """The model of another configuration."""
    other = Source(source.address)
    vars(other).update(vars(source), config=config)
    return empty_model(other)


def _halved(config: Any) -> Any:
    """A configuration of half the width.

    Raises
    ------
    InputError
        When it cannot be halved.
    """
    found = copy.deepcopy(config)
    text = found.get_text_config()
    for name in WIDTHS:
        value = getattr(text, name, None)
        if isinstance(value, int):
            if value % 2:
                raise InputError("a block of this model does not fit into memory, to be timed")
            setattr(text, name, value // 2)
    return found

"""A causal language model whose blocks are in memory one at a time.

Everything outside the blocks (embedding, last norm, head) stays in memory. A block's weights are
read when it runs and freed afterwards, so that a model of any size runs in the memory of one block;
all windows pass one block before the next is read. If a checkpoint's tensors are not its model's
parameters one to one, the model is loaded whole, and the same passes run on it. Every matrix is a
linear layer of its own, also where the model fuses or stacks them (`spectra.models.parts`).
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spectra.machine.libc import trim
from spectra.models.inputs import running
from spectra.models.loading import Loaded, load_parted
from spectra.models.source import Source
from spectra.models.streamed import blocks_of, emptied, put_outside
from spectra_data.errors import InputError


@dataclass(eq=False)
class Passage:
    """A batch of windows on its way through the blocks."""

    windows: range
    """Numbers of its windows."""
    tokens: torch.Tensor
    """(windows, length)."""
    hidden: torch.Tensor
    """Input of the next block, (windows, length, features)."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """Further arguments of each block, such as positions and masks."""


class _Reached(Exception):  # noqa: N818
    """Raised when the last block is reached."""


class Blocks:
    """The blocks of a model, by position.

    Parameters
    ----------
    loaded
        Model, with or without weights in its blocks.
    device
        Device on which blocks run.
    """

    def __init__(self, loaded: Loaded, device: str | torch.device = "cpu") -> None:
        self.model = loaded.model.eval().requires_grad_(False)
        self.device = torch.device(device)
        self._loaded = loaded
        path, self._blocks = blocks_of(self.model)
        self.names = [f"{path}.{i}" for i in range(len(self._blocks))]
        for name, parameter in self.model.named_parameters():
            if not name.startswith(f"{path}.") and parameter.is_meta:
                raise InputError(f"{name} is not in the checkpoint")
        if not loaded.streams:
            self.model.to(self.device)
        else:
            put_outside(self.model, self._blocks, self.device)
        self._in_tuples = False
        """Whether blocks return tuples."""

    def __len__(self) -> int:
        return len(self._blocks)

    @contextlib.contextmanager
    def block(self, i: int) -> Iterator[torch.nn.Module]:
        """A block with its weights, in float32, on the device; freed afterwards."""
        block = self._blocks[i]
        if not self._loaded.streams:
            yield block
            return
        self._loaded.fill(block, self.names[i], self.device)
        try:
            yield block
        finally:
            emptied(block)
            trim()  # of what ran in it, which the next block would find in pieces

    @torch.no_grad()
    def start(self, windows: torch.Tensor, batch_size: int = 4) -> list[Passage]:
        """Embed windows of tokens, (windows, length), and record the arguments of every block."""
        numbers = range(len(windows))
        starts = numbers[::batch_size]
        return [self._embedded(numbers[i : i + batch_size], windows) for i in starts]

    def run(self, i: int, block: torch.nn.Module, passage: Passage) -> torch.Tensor:
        """The output of a block for a passage: (windows, length, features)."""
        return self.call(i, block, passage.hidden, passage)

    def call(
        self, i: int, block: torch.nn.Module, hidden: torch.Tensor, passage: Passage
    ) -> torch.Tensor:
        """The output of a block for other hidden states, with the arguments of a passage."""
        args, kwargs = passage.calls[i]
        out: torch.Tensor | tuple[torch.Tensor, ...] = block(hidden, *args, **kwargs)
        self._in_tuples = isinstance(out, tuple)
        return out[0] if isinstance(out, tuple) else out

    def logits(self, hidden: torch.Tensor, passage: Passage) -> torch.Tensor:
        """Logits for an output of the last block: (windows, length, vocabulary)."""
        last = len(self._blocks) - 1

        def passed(i: int) -> Any:
            def forward(given: torch.Tensor, *_: Any, **__: Any) -> Any:
                out = hidden if i == last else given
                return (out,) if self._in_tuples else out

            return forward

        with self._replaced([passed(i) for i in range(len(self._blocks))]):
            logits: torch.Tensor = self.model(
                input_ids=passage.tokens.to(self.device), use_cache=False
            ).logits
        return logits

    def _embedded(self, numbers: range, windows: torch.Tensor) -> Passage:
        tokens = windows[numbers.start : numbers.stop]
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), {}) for _ in self._blocks]
        found: list[torch.Tensor] = []
        last = len(self._blocks) - 1

        def caught(i: int) -> Any:
            def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
                calls[i] = args, {k: v for k, v in kwargs.items() if "past_key_value" not in k}
                found.append(hidden_states)
                if i == last:
                    raise _Reached
                return hidden_states

            return forward

        with (
            self._replaced([caught(i) for i in range(len(self._blocks))]),
            running(self.model, tokens),
            contextlib.suppress(_Reached),
        ):
            self.model(input_ids=tokens.to(self.device), use_cache=False)
        return Passage(numbers, tokens, found[0], calls)

    @contextlib.contextmanager
    def _replaced(self, forwards: Sequence[Any]) -> Iterator[None]:
        """Replace the forward functions of the blocks for a while."""
        for block, forward in zip(self._blocks, forwards, strict=True):
            block.forward = forward
        try:
            yield
        finally:
            for block in self._blocks:
                del block.forward


def open_blocks(source: Source, device: str = "cpu") -> Blocks:
    """The blocks of a checkpoint, read one at a time if its tensors are named like the model's.

    Raises
    ------
    InputError
        When transformers cannot load its model.
    """
    return Blocks(load_parted(source), device)

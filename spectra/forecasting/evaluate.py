"""The forecast of an evaluation."""

import math

import torch

from spectra.evaluation.tasks import NEW_TOKENS
from spectra.forecasting import costs
from spectra.forecasting.blocks import SampleBlock
from spectra.forecasting.forecast import Forecast, Stage
from spectra.forecasting.stored import stored_bytes, stored_tensors
from spectra.machine.memory import resident
from spectra.models.placement import Loading, fits
from spectra.models.source import Source

LOSS = 3
"""Float32 copies of a window's logits in memory while its loss is computed."""
KEPT = 250_000_000
"""Bytes that the allocator keeps of blocks that were freed."""
WORKING = 3
"""What a block computes that is in memory together, in outputs of its linear layers."""


class EvaluationForecaster:
    """Forecasts of a checkpoint's evaluations.

    Parameters
    ----------
    source, dtype, loading
        Checkpoint, precision, and how it is loaded.
    batch_size
        Windows or questions in a batch; None for the default.
    """

    def __init__(
        self, source: Source, dtype: torch.dtype, loading: Loading, batch_size: int | None = None
    ) -> None:
        self._base = resident()
        self._block = SampleBlock(source, dtype)
        self._source, self._width, self._batch_size = source, dtype.itemsize, batch_size
        self._streams = loading == "blocks" or (loading == "auto" and not fits(source, dtype))

    def perplexity(self, windows: int, length: int) -> Forecast:
        """The forecast of a perplexity over windows of `length` tokens."""
        block = self._block
        usual = max(1, 2048 // length) if self._streams else 4
        batch = min(windows, self._batch_size or usual)
        each = block.count * block.forward(length) + block.head(length)
        computing = Stage("forward passes", windows * length * each)
        return self._forecast(math.ceil(windows / batch), computing, batch, length)

    def task(self, questions: int, tokens: float) -> Forecast:
        """The forecast of a task, of a number of tokens in a question on average."""
        block, length = self._block, round(tokens)
        batch = min(questions, self._batch_size or (32 if self._streams else 4))
        batches = math.ceil(questions / batch)
        reading = questions * tokens * block.count * block.forward(max(32, length))
        step = block.count * block.step(batch) + batch * block.head(batch)
        computing = Stage("prompts and answers", reading + batches * NEW_TOKENS * step)
        return self._forecast(batches * NEW_TOKENS, computing, batch, length)

    def _forecast(self, passes: int, computing: Stage, windows: int, length: int) -> Forecast:
        """The forecast of computing, with the reading that it needs if blocks are streamed."""
        block, streams, source = self._block, self._streams, self._source
        tensors = stored_tensors(source)
        reads = stored_bytes(tensors) * (1 + passes if streams else 2)  # once to be checked
        vocabulary = source.config.get_text_config().vocab_size
        logits = (windows * self._width + LOSS * 4) * length * vocabulary
        inside = (1 if streams else block.count) * block.inside
        working = WORKING * windows * length * block.outputs * self._width
        return Forecast(
            reads,
            self._base + block.outside + _largest(inside, working, logits, streams),
            0,
            (Stage("reading", costs.reading(tensors).seconds(reads)), computing),
            remarks=(f"blocks are {'read one at a time' if streams else 'all in memory'}",),
        )


def _largest(inside: int, working: int, logits: int, streams: bool) -> int:
    """Bytes of blocks, and of what they compute: a streamed block is gone before the logits."""
    if streams:
        return max(inside + working, logits) + KEPT
    return inside + max(working, logits)

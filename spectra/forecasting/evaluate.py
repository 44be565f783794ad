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


def perplexity_forecast(
    source: Source,
    dtype: torch.dtype,
    loading: Loading,
    *,
    windows: int,
    length: int,
    batch_size: int | None,
) -> Forecast:
    """The forecast of a perplexity.

    Parameters
    ----------
    source, dtype, loading
        Checkpoint, precision, and how it is loaded.
    windows, length
        Number of windows, and of tokens in each.
    batch_size
        Windows in a batch; None for the default.
    """
    base, block = resident(), SampleBlock(source, dtype)
    streams = _streams(source, dtype, loading)
    batch = min(windows, batch_size or (max(1, 2048 // length) if streams else 4))
    passes = math.ceil(windows / batch) if streams else 1
    each = block.count * block.forward(length) + block.head(length)
    computing = Stage("forward passes", windows * length * each)
    return _forecast(source, block, dtype, streams, passes, computing, batch, length, base)


def task_forecast(
    source: Source,
    dtype: torch.dtype,
    loading: Loading,
    *,
    questions: int,
    tokens: float,
    batch_size: int | None,
) -> Forecast:
    """The forecast of a task.

    Parameters
    ----------
    source, dtype, loading
        Checkpoint, precision, and how it is loaded.
    questions, tokens
        Number of questions, and of tokens in one on average.
    batch_size
        Questions in a batch; None for the default.
    """
    base, block = resident(), SampleBlock(source, dtype)
    streams = _streams(source, dtype, loading)
    batch = min(questions, batch_size or (32 if streams else 4))
    batches = math.ceil(questions / batch)
    count = block.count
    reading = questions * tokens * count * block.forward(max(32, round(tokens)))
    step = count * block.step(batch) + batch * block.head(batch)
    computing = Stage("prompts and answers", reading + batches * NEW_TOKENS * step)
    passes = batches * NEW_TOKENS if streams else 1
    return _forecast(source, block, dtype, streams, passes, computing, batch, round(tokens), base)


def _streams(source: Source, dtype: torch.dtype, loading: Loading) -> bool:
    return loading == "blocks" or (loading == "auto" and not fits(source, dtype))


def _forecast(
    source: Source,
    block: SampleBlock,
    dtype: torch.dtype,
    streams: bool,
    passes: int,
    computing: Stage,
    windows: int,
    length: int,
    base: int,
) -> Forecast:
    """The forecast of computing, with the reading that it needs."""
    tensors = stored_tensors(source)
    whole, rate = stored_bytes(tensors), costs.reading(tensors)
    reads = whole * (1 + passes if streams else 2)  # all are read once to be checked
    vocabulary = source.config.get_text_config().vocab_size
    logits = (windows * dtype.itemsize + LOSS * 4) * length * vocabulary
    inside = (1 if streams else block.count) * block.inside
    working = WORKING * windows * length * block.outputs * dtype.itemsize
    return Forecast(
        reads,
        base + block.outside + _largest(inside, working, logits, streams),
        0,
        (Stage("reading", rate.seconds(reads)), computing),
        remarks=(f"blocks are {'read one at a time' if streams else 'all in memory'}",),
    )


def _largest(inside: int, working: int, logits: int, streams: bool) -> int:
    """Bytes of blocks, and of what they compute: a streamed block is gone before the logits."""
    if streams:
        return max(inside + working, logits) + KEPT
    return inside + max(working, logits)

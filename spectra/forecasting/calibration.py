"""The forecast of a calibration: text, passes, decompositions, and the space that they need."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from spectra.calibration.options import SELF, Calibration
from spectra.calibration.statistics import CARRIED, GRADIENTS, INPUTS, OUTPUTS
from spectra.calibration.text import WRITTEN_TOGETHER, kept_together
from spectra.compression.block import LARGE_SIDE
from spectra.compression.calibrated import INSTEAD, kept_text
from spectra.compression.methods import WEIGHING
from spectra.compression.space import SIBLINGS, calibration_bytes, states_bytes
from spectra.forecasting import costs
from spectra.forecasting.blocks import SampleBlock
from spectra.forecasting.forecast import Stage, duration
from spectra.forecasting.stored import stored_bytes, stored_tensors
from spectra.machine.cores import available_cores
from spectra.machine.memory import resident
from spectra.matrices import Matrix
from spectra.models.placement import fits
from spectra.models.source import Source

SINGLE, DOUBLE = 4, 8
FORWARD, BACKWARD = 2, 4
"""What a block computes that is in memory together, in outputs of its linear layers."""
SIDES_AT_ONCE = 4
"""Square float64 matrices of a side in memory while it is decomposed."""


@dataclass(frozen=True)
class Calibrating:
    """What calibration needs and takes."""

    stages: tuple[Stage, ...]
    reads: int
    memory: int
    scratch: int
    remarks: tuple[str, ...] = ()


def calibration_forecast(
    source: Source, calibration: Calibration, method: str, matrices: Collection[Matrix]
) -> Calibrating:
    """The forecast of a calibration.

    Parameters
    ----------
    source
        Checkpoint.
    calibration
        Text.
    method
        ``asvd``, ``whiten``, ``fisher`` or ``sequential``; ``wanda`` or ``sparsegpt``.
    matrices
        Matrices that are calibrated.
    """
    base = resident()
    block = SampleBlock(source, apart=True)
    count, tokens = block.count, calibration.windows * calibration.length
    stored = stored_tensors(source)
    weights = stored_bytes(stored)
    rate, hashed = costs.reading(stored), costs.reading(stored, hashed=True)
    stages, remarks = [], []
    writing = _text(source, calibration, block, rate.seconds(weights))
    if writing is not None and writing > 3600 * calibration.own_text_hours:
        remarks.append(
            f"writing its own text would take {duration(writing)}, longer than --own-text-hours: "
            f"it will be calibrated on {INSTEAD}"
        )
        writing = None
    if writing is not None:
        stages.append(Stage("own text", writing))
    text_reads = 0 if writing is None else weights
    writes_whole = writing is not None and fits(source, torch.float32)
    stages.append(Stage("reading and hashing", hashed.seconds(weights) + rate.seconds(weights)))
    by_block = _by_block(matrices)
    weighing = WEIGHING.get(method)
    backward = weighing is not None and weighing.backward
    forward = block.forward(calibration.length)
    passing = count * tokens * forward + rate.seconds(weights)
    if method in ("sequential", "wanda", "sparsegpt"):
        passing *= {"sequential": 3, "wanda": 2, "sparsegpt": 2}[method]
    elif backward:
        head = block.head(calibration.length, loss=True)
        passing += count * tokens * block.backward(calibration.length) + rate.seconds(weights)
        passing += tokens * head
    share = _expert_share(source)
    summing = sum(
        tokens * seconds for inside in by_block for seconds in _sums(inside, method, share)
    )
    stages.append(Stage("passes of text", passing + summing))
    states = states_bytes(torch.empty(calibration.windows, calibration.length), source)
    sides = [matrix.full_rank for matrix in matrices]
    if weighing is not None:
        stages.append(Stage("decompositions", sum(map(_decomposing, by_block))))
        scratch = calibration_bytes(by_block, states, weighing)
    else:
        scratch = (4 if method == "sequential" else 2) * states
    moments = max((DOUBLE * sum(_moment_sides(inside, method)) for inside in by_block), default=0)
    batch = min(calibration.batch_size, calibration.windows) * calibration.length
    memory = base + block.outside + block.inside + 2 * states + moments
    memory += SIDES_AT_ONCE * DOUBLE * max(sides, default=0) ** 2
    memory += (BACKWARD if backward else FORWARD) * SINGLE * batch * block.outputs
    if writes_whole:  # what it frees is not given back at once
        memory += block.outside + count * block.inside
    passes = 2 if backward else 1
    reads = text_reads + (2 + passes) * weights
    return Calibrating(tuple(stages), reads, memory, scratch, tuple(remarks))


def _text(
    source: Source, calibration: Calibration, block: SampleBlock, reading: float
) -> float | None:
    """Seconds of writing own text; None if there is none to write."""
    if calibration.data != SELF or kept_text(source, calibration) is not None:
        return None
    whole = fits(source, torch.float32)
    together = WRITTEN_TOGETHER
    if not whole:
        together = kept_together(source.config, calibration.windows, calibration.length)
    rows = min(together, calibration.windows)
    steps = math.ceil(calibration.windows / together) * (calibration.length - 1)
    each = block.count * block.step(rows) + rows * block.head(rows)
    each += costs.drawing(rows, source.config.get_text_config().vocab_size)
    return steps * (each + (0.0 if whole else reading)) + reading


def _by_block(matrices: Collection[Matrix]) -> list[list[Matrix]]:
    found: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        found.setdefault(matrix.block, []).append(matrix)
    return list(found.values())


def _expert_share(source: Source) -> float:
    """Tokens that an expert gets, on average, over all tokens."""
    config = source.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    number = next((n for name in names if (n := getattr(config, name, None))), None)
    return min(1.0, chosen / number) if chosen and number else 1.0


def _moments(matrices: Sequence[Matrix], method: str) -> Iterator[tuple[Matrix, int]]:
    """Sides of the moments that are summed, with a matrix of each.

    Siblings share those of their inputs.
    """
    shared: dict[str, tuple[Matrix, int]] = {}
    for matrix in matrices:
        folder, _, last = matrix.name.rpartition(".")
        sibling = f"{folder}.{SIBLINGS.get(matrix.role, last)}"
        if method in ("sparsegpt", "sequential"):
            shared[sibling] = matrix, matrix.cols
            continue
        weighing = WEIGHING.get(method)
        wanted = weighing.wanted(matrix.rows, matrix.cols) if weighing is not None else ()
        if INPUTS in wanted:
            shared[sibling] = matrix, matrix.cols
        yield from ((matrix, matrix.rows) for kind in (OUTPUTS, GRADIENTS) if kind in wanted)
        if CARRIED in wanted:
            yield matrix, matrix.cols
    yield from shared.values()


def _moment_sides(matrices: Sequence[Matrix], method: str) -> Iterator[int]:
    yield from (side * side for _, side in _moments(matrices, method))


def _sums(matrices: Sequence[Matrix], method: str, expert_share: float) -> Iterator[float]:
    """Seconds for a token of the sums of a block, one by one."""
    for matrix, side in _moments(matrices, method):
        share = expert_share if ".experts." in matrix.name else 1.0
        yield share * costs.products(side) * (2 if method == "sequential" else 1)


def _decomposing(matrices: Sequence[Matrix]) -> float:
    """Seconds of the decompositions of a block: small ones each on a core, others one by one."""
    total, cores = 0.0, available_cores()
    for matrix in matrices:
        count = cores if matrix.full_rank < LARGE_SIDE else 1
        total += costs.decomposed(matrix.rows, matrix.cols, True, count)
    return total

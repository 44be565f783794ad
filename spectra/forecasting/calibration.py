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
FORWARDS = {"sequential": 3, "wanda": 2, "sparsegpt": 2}
"""Forward passes of methods that need several."""
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
    found = _Forecaster(source, calibration, method, _by_block(matrices))
    stages, remarks = [], []
    writing = found.text()
    if writing is not None and writing > 3600 * calibration.own_text_hours:
        remarks.append(
            f"writing its own text would take {duration(writing)}, longer than --own-text-hours: "
            f"it will be calibrated on {INSTEAD}"
        )
        writing = None
    if writing is not None:
        stages.append(Stage("own text", writing))
    stages.append(Stage("reading and hashing", found.hashing()))
    stages.append(Stage("passes of text", found.passes()))
    if found.decomposes:
        stages.append(Stage("decompositions", sum(map(_decomposing, found.by_block))))
    reads = (2 + (2 if found.backward else 1) + (writing is not None)) * found.weights
    memory = base + found.memory(writing is not None and fits(source, torch.float32))
    return Calibrating(tuple(stages), reads, memory, found.scratch(), tuple(remarks))


class _Forecaster:
    """The parts of a calibration's forecast."""

    def __init__(
        self,
        source: Source,
        calibration: Calibration,
        method: str,
        by_block: Sequence[Sequence[Matrix]],
    ) -> None:
        self._source, self._text, self._method = source, calibration, method
        self.by_block = by_block
        self._block = SampleBlock(source, apart=True)
        self._stored = stored_tensors(source)
        self.weights = stored_bytes(self._stored)
        """Bytes of all weights."""
        self._reading = costs.reading(self._stored).seconds(self.weights)
        self._weighing = WEIGHING.get(method)
        self.backward = self._weighing is not None and self._weighing.backward
        self.decomposes = self._weighing is not None or method == "sequential"
        self._states = states_bytes(torch.empty(calibration.windows, calibration.length), source)

    def text(self) -> float | None:
        """Seconds of writing own text; None if there is none to write."""
        source, text, block = self._source, self._text, self._block
        if text.data != SELF or kept_text(source, text) is not None:
            return None
        whole = fits(source, torch.float32)
        together = WRITTEN_TOGETHER
        if not whole:
            together = kept_together(source.config, text.windows, text.length)
        rows = min(together, text.windows)
        steps = math.ceil(text.windows / together) * (text.length - 1)
        each = block.count * block.step(rows) + rows * block.head(rows)
        each += costs.drawing(rows, source.config.get_text_config().vocab_size)
        return steps * (each + (0.0 if whole else self._reading)) + self._reading

    def hashing(self) -> float:
        """Seconds of reading all weights twice: to hash them, and to see that they are finite."""
        hashed = costs.reading(self._stored, hashed=True)
        return hashed.seconds(self.weights) + self._reading

    def passes(self) -> float:
        """Seconds of forward and backward passes, with the sums of moments."""
        block, length = self._block, self._text.length
        tokens = self._text.windows * length
        forward = block.count * tokens * block.forward(length) + self._reading
        seconds = forward * FORWARDS.get(self._method, 1)
        if self.backward:
            back = block.count * block.backward(length) + block.head(length, loss=True)
            seconds += tokens * back + self._reading
        share = _expert_share(self._source)
        sums = (each for inside in self.by_block for each in _sums(inside, self._method, share))
        return seconds + tokens * sum(sums)

    def memory(self, writes_whole: bool) -> int:
        """Bytes of memory; what a whole model takes that writes text is not given back at once."""
        block, text = self._block, self._text
        moments = [sum(_moment_sides(inside, self._method)) for inside in self.by_block]
        largest = max((m.full_rank for inside in self.by_block for m in inside), default=0)
        batch = min(text.batch_size, text.windows) * text.length
        found = block.outside + block.inside + 2 * self._states
        found += DOUBLE * (max(moments, default=0) + SIDES_AT_ONCE * largest**2)
        found += (BACKWARD if self.backward else FORWARD) * SINGLE * batch * block.outputs
        return int(found + (block.outside + block.count * block.inside if writes_whole else 0))

    def scratch(self) -> int:
        """Bytes of hidden states and decompositions on disk."""
        if self._weighing is None:
            return (4 if self._method == "sequential" else 2) * self._states
        return calibration_bytes(self.by_block, self._states, self._weighing)


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
        total += costs.decomposed(matrix.rows, matrix.cols, count)
    return total

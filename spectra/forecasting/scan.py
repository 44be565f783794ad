"""The forecast of a scan."""

from collections import Counter
from collections.abc import Sequence

import torch

from spectra.checkpoint.checkpoint import Checkpoint
from spectra.forecasting import costs
from spectra.forecasting.forecast import Forecast, Stage
from spectra.machine.memory import resident
from spectra.matrices import Matrix
from spectra.scanning.decomposition import DecompositionOptions, working_bytes
from spectra.scanning.engines import READ_AHEAD, threads_for

VALUE = 8
"""Bytes of a singular value in a store, which compresses it little."""
PER_MATRIX = 1500
"""Bytes of names, errors and statuses in a store."""


def scan_forecast(
    checkpoints: Sequence[Checkpoint],
    options: DecompositionOptions,
    workers: int | None,
    *,
    opening: float = 0.0,
) -> Forecast:
    """The forecast of a scan of several checkpoints of the same matrices, from the start.

    Parameters
    ----------
    checkpoints
        Checkpoints to scan.
    options
        Options of decompositions.
    workers
        Number of processes; None for threads.
    opening
        Seconds in which the checkpoints were opened.
    """
    base = resident()
    matrices = [matrix for opened in checkpoints for matrix in opened.matrices]
    first = checkpoints[0]
    count = workers or threads_for(matrices, options)
    shapes = Counter((m.rows, m.cols, _dtype(first, m)) for m in matrices)
    each = {shape: costs.spectrum(*shape, options, count) for shape in shapes}
    computing = sum(number * each[shape] for shape, number in shapes.items()) / count
    reads = sum(m.rows * m.cols * _dtype(first, m).itemsize for m in matrices)
    reading = costs.reading(first.source).seconds(reads)
    stages = [Stage("opening", opening), Stage("decompositions", computing)]
    if reading > computing:
        stages.append(Stage("reading, beside it", reading - computing))
    largest = max((working_bytes(m, options) for m in matrices), default=0)
    weight = max(m.rows * m.cols * _dtype(first, m).itemsize for m in matrices)
    values = sum(m.full_rank for m in matrices) * VALUE * (2 if options.approximate else 1)
    return Forecast(
        reads,
        base + count * largest + (READ_AHEAD + 1) * weight,
        values + PER_MATRIX * len(matrices),
        tuple(stages),
    )


def _dtype(opened: Checkpoint, matrix: Matrix) -> torch.dtype:
    where = opened.matrices.get(matrix)
    stored = opened.source.tensors[where.tensor] if where is not None else None
    return (stored.readable_as if stored is not None else None) or torch.float32

"""The forecast of a pruning."""

from collections.abc import Collection

from spectra.calibration.options import Calibration
from spectra.checkpoint.writer import SHARD_BYTES
from spectra.forecasting import costs
from spectra.forecasting.calibration import calibration_forecast
from spectra.forecasting.forecast import Forecast, Stage
from spectra.forecasting.stored import stored_bytes, stored_tensors
from spectra.machine.memory import resident
from spectra.matrices import Matrix
from spectra.models.source import Source
from spectra.pruning.sparsity import Pattern

DOUBLE = 8


def prune_forecast(
    source: Source,
    matrices: Collection[Matrix],
    pattern: Pattern,
    method: str,
    calibration: Calibration,
    *,
    opening: float = 0.0,
) -> Forecast:
    """The forecast of a pruning, from the start.

    Parameters
    ----------
    source
        Checkpoint.
    matrices
        Matrices that are pruned.
    pattern, method, calibration
        See `prune`.
    opening
        Seconds in which the checkpoint was opened, and its matrices were found.
    """
    stages = [Stage("opening", opening)]
    base = resident()
    reads, memory, scratch = 0, base, 0
    remarks: tuple[str, ...] = ()
    sizes = sum(m.rows * m.cols for m in matrices)
    if method != "magnitude":
        found = calibration_forecast(source, calibration, method, matrices)
        stages += found.stages
        reads, memory, scratch = found.reads, found.memory, found.scratch
        remarks = found.remarks
        scratch += sizes * source.dtype.itemsize
    each = sum(costs.pruned(m.rows, m.cols, pattern, method) for m in matrices)
    stored = stored_tensors(source)
    whole, rate = stored_bytes(stored), costs.reading(stored)
    stages.append(Stage("pruning", each + rate.seconds(whole)))
    stages.append(Stage("writing", costs.writing().seconds(whole)))
    largest = max((m.rows * m.cols for m in matrices), default=0)
    memory = max(memory, base + min(SHARD_BYTES, whole) + 4 * DOUBLE * largest)
    return Forecast(reads + whole, memory, whole, tuple(stages), scratch, remarks)

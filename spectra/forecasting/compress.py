"""The forecast of a compression."""

import time
from collections.abc import Sequence

import numpy as np
import torch

from spectra.allocation.costs import factored_parameters
from spectra.checkpoint.writer import SHARD_BYTES
from spectra.compression.plan import Draft, Request, make_draft
from spectra.compression.sources import require_dtype
from spectra.forecasting import costs
from spectra.forecasting.calibration import calibration_forecast
from spectra.forecasting.forecast import Forecast, Stage
from spectra.forecasting.stored import stored_bytes
from spectra.machine.memory import resident
from spectra.matrices import Matrix
from spectra.storages.registry import BUDGET_STORAGE, STORAGES

COPIES = 4
"""Float64 copies of a matrix in memory while it is truncated and its error is measured."""
DOUBLE = 8


def compress_forecast(request: Request) -> Forecast:
    """The forecast of a compression, from the start.

    With a budget, ranks are not known yet: all matrices are taken to keep the same share.

    Raises
    ------
    InputError
        As `compress`, as far as that is known before the first pass.
    """
    started = time.perf_counter()
    draft = make_draft(request)
    source, settings = request.source, request.options.settings
    stages = [Stage("checks", time.perf_counter() - started)]
    opened = source.checkpoint
    matrices = draft.free(opened)
    base = resident()
    reads, scratch, memory = 0, 0, base
    remarks: tuple[str, ...] = ()
    if settings.calibrated:
        found = calibration_forecast(source, settings.calibration, settings.method, matrices)
        stages += found.stages
        reads, scratch, memory = found.reads, found.scratch, found.memory
        remarks = found.remarks
    ranks = _ranks(request, draft, matrices)
    storage = request.options.storage or (
        BUDGET_STORAGE if draft.rank_map is None else draft.rank_map.storage
    )
    given = request.options.dtype
    dtype = source.dtype if given is None else require_dtype(given)
    cutting = sum(
        costs.truncated(
            m.rows,
            m.cols,
            _near(ranks[m.name], m.full_rank),
            storage,
            dtype,
            settings.calibrated,
        )
        for m in matrices
        if m.name in ranks
    )
    whole = stored_bytes(draft.tensors)
    hashed = costs.reading(draft.tensors, hashed=True)
    saved = sum(
        m.rows * m.cols - int(factored_parameters(m.rows, m.cols, ranks[m.name], storage))
        for m in matrices
        if m.name in ranks
    )
    numbers = sum(torch.Size(t.shape).numel() for t in draft.tensors.tensors.values())
    dense = numbers * dtype.itemsize if given else whole
    writes = dense - saved * dtype.itemsize
    stages.append(Stage("truncation", cutting + hashed.seconds(whole)))
    stages.append(Stage("writing", costs.writing().seconds(writes)))
    largest = max((m.rows * m.cols for m in matrices), default=0)
    shard = min(SHARD_BYTES, whole)
    memory = max(memory, base + shard + COPIES * DOUBLE * largest)
    return Forecast(reads + whole, memory, writes, tuple(stages), scratch, remarks)


def _ranks(request: Request, draft: Draft, matrices: Sequence[Matrix]) -> dict[str, int]:
    """Ranks of the matrices that will be factored, by name."""
    if draft.rank_map is not None:
        return {m.name: m.rank for m in draft.rank_map.modules if m.factored}
    assert request.options.budget is not None
    kind = STORAGES[request.options.storage or BUDGET_STORAGE]
    total = sum(m.rows * m.cols for m in request.source.checkpoint.matrices)
    room = sum(m.rows * m.cols for m in matrices)
    share = (request.options.budget * total - (total - room)) / room
    found = {}
    for m in matrices:
        kept = np.array(share * m.rows * m.cols)
        rank = int(kind.rank_of(np.array(m.rows), np.array(m.cols), kept))
        found[m.name] = min(max(rank, 1), m.full_rank - 1)
    return found


def _near(rank: int, full: int) -> int:
    """A rank that is sampled instead: an eighth of the full rank, or a multiple of it."""
    return max(1, round(8 * rank / full) * full // 8)

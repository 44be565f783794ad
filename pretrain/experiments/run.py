"""Run an experiment that finetunes: measure, and write table, figure and what it says."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from data.errors import InputError
from pretrain.experiments.lab import Lab
from pretrain.experiments.results import RESULTS, Result
from spectra.experiments.ledger import Row
from spectra.experiments.run import Outcome, Progress, Shape, written
from spectra.experiments.settings import Settings
from spectra.experiments.tuning import Tuning
from spectra.store.durable import write_file


def run_tuning(
    name: str,
    checkpoint: str,
    settings: Settings,
    tuning: Tuning,
    folder: Path,
    *,
    lab: Path | None = None,
    device: str = "cpu",
    progress: Progress = lambda stage, done, count: None,
) -> Outcome:
    """Make every run that is not there yet, and write what was found.

    Parameters are those of `spectra.experiments.run.run_experiment`, with the settings of
    finetuning, and the folder of what several experiments may share.

    Raises
    ------
    InputError
        When the folder cannot be written, something is missing, or a run fails.
    """
    result = RESULTS[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    made = Lab(checkpoint, settings, tuning, lab or folder, device, progress)
    cells = list(result.cells(tuning))
    made.require(cells)
    rows = [made.row(cell) for cell in cells]
    known = {"experiment": name, "checkpoint": checkpoint, "device": device}
    known |= settings.to_dict() | tuning.to_dict()
    results = folder / "results.json"
    write_file(results, json.dumps({"settings": known, "rows": rows}, indent=1).encode())
    points, said = list(_points(result, rows)), tuple(result.claims(rows))
    shape = Shape(name, result.experiment, points, said, tuple(result.table(rows)))
    return written(shape, rows, folder, f"{Path(checkpoint).name}, {tuning.steps} steps", results)


def _points(result: Result, rows: Sequence[Row]) -> Iterator[tuple[Any, Any, str]]:
    """Of every method its evaluations, or its last figures: means over seeds and tasks."""
    found: dict[tuple[Any, str], list[float]] = {}
    for row in rows:
        for x, y in _evaluated(result, row):
            found.setdefault((x, str(row["train"])), []).append(y)
    for (x, label), values in found.items():
        yield x, fmean(values), label


def _evaluated(result: Result, row: Row) -> Iterator[tuple[Any, float]]:
    experiment = result.experiment
    if not result.curves:
        yield row[experiment.x], row[experiment.y]
        return
    for evaluation in row["evaluations"]:
        loss = evaluation["validation_loss"]
        perplexity = experiment.y == "validation_perplexity"
        yield evaluation["tokens"], math.exp(loss) if perplexity else loss

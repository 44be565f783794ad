"""Run an experiment that finetunes: measure, and write table, figure and what it says."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from spectra.experiments.child import FailedError
from spectra.experiments.ledger import Row
from spectra.experiments.run import Outcome, Shape, written
from spectra.experiments.settings import Settings
from spectra.experiments.tuning import Tuning
from spectra.machine.progress import Progress, silent
from spectra.store.destination import make_folder
from spectra.store.durable import write_file
from spectra.store.lock import locked
from spectra_data.partial import remove_leftovers
from spectra_pretrain.experiments.lab import Cell, Lab
from spectra_pretrain.experiments.results import RESULTS, Result


def run_tuning(
    name: str,
    checkpoint: str,
    settings: Settings,
    tuning: Tuning,
    folder: Path,
    *,
    lab: Path | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Outcome:
    """Make every run that is not there yet, and write what was found.

    Parameters are those of `spectra.experiments.run.run_experiment`, with the settings of
    finetuning, and the folder of what several experiments may share.

    Raises
    ------
    InputError
        When the folder cannot be written, another process writes to it, or something is missing.
        Where runs fail, the outcome says so, and nothing is said of the paper where they are
        missed.
    """
    result = RESULTS[name]
    made = Lab(checkpoint, settings, tuning, lab or folder, device, progress)
    cells = list(result.cells(tuning))
    made.require(cells)
    make_folder(folder)
    with locked(folder):
        remove_leftovers(folder)
        rows, failed = _measured(made, cells)
        known = {"experiment": name, "checkpoint": checkpoint, "device": device}
        known |= settings.to_dict() | tuning.to_dict()
        results = folder / f"{name}.json"
        found = {"settings": known, "rows": rows, "failed": list(failed.values())}
        write_file(results, json.dumps(found, indent=1).encode())
        points, said = list(points_of(result, rows)), tuple(_said(result, rows, failed))
        shape = Shape(name, result.experiment, points, said, tuple(result.table(rows)))
        subtitle = f"{Path(checkpoint).name}, {tuning.steps} steps"
        outcome = written(shape, rows, folder, subtitle, results)
    return replace(outcome, failed=tuple(failed.values()))


def _measured(made: Lab, cells: Sequence[Cell]) -> tuple[list[Row], dict[Cell, str]]:
    """The runs that reach their end, and why others did not."""
    rows, failed = [], {}
    for done, cell in enumerate(cells):
        made.progress(f"run {cell.name}", done, len(cells))
        try:
            rows.append(made.row(cell))
        except FailedError as error:
            failed[cell] = str(error)
            made.progress(f"run {cell.name} failed", done + 1, len(cells))
    made.progress("runs", len(cells), len(cells))
    return rows, failed


def _said(result: Result, rows: Sequence[Row], failed: Mapping[Cell, str]) -> Iterator[str]:
    """What the paper claims of the ERRs at which every run reached its end."""
    lacking = {cell.err for cell in failed}
    for err in sorted(lacking):
        count = sum(cell.err == err for cell in failed)
        yield f"not compared at ERR {err:.0%}; runs that failed there: {count}"
    whole = [row for row in rows if row["err"] not in lacking]
    if whole:
        yield from result.claims(whole)


def points_of(result: Result, rows: Sequence[Row]) -> Iterator[tuple[Any, Any, str]]:
    """Of every method its evaluations, or its last figures: means over seeds and tasks."""
    found: dict[tuple[Any, str], list[tuple[float, float]]] = {}
    for row in rows:
        for place, x, y in _evaluated(result, row):
            found.setdefault((place, str(row["train"])), []).append((x, y))
    for (_, label), points in found.items():
        xs, ys = zip(*points, strict=True)
        yield fmean(xs), fmean(ys), label


def _evaluated(result: Result, row: Row) -> Iterator[tuple[Any, float, float]]:
    """What tells a point from the others of its run, and its x and y.

    An evaluation is told by its step: with every seed, a task's questions have other tokens.
    """
    experiment = result.experiment
    if not result.curves:
        yield row[experiment.x], row[experiment.x], row[experiment.y]
        return
    for evaluation in row["evaluations"]:
        loss = evaluation["validation_loss"]
        perplexity = experiment.y == "validation_perplexity"
        yield evaluation["step"], evaluation["tokens"], math.exp(loss) if perplexity else loss

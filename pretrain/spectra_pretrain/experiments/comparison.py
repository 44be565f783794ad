"""Experiments that compare ways of finetuning: runs, table, figure, and the paper's claims."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from spectra.experiments.child import FailedError
from spectra.experiments.experiment import Experiment, Outcome
from spectra.experiments.ledger import Row, write_results
from spectra.experiments.writing import Point, Shape, written
from spectra.machine.progress import Progress, silent
from spectra.store.destination import make_folder, require_writable
from spectra.store.lock import locked
from spectra_data.partial import remove_leftovers
from spectra_pretrain.experiments.lab import Cell, Lab
from spectra_pretrain.experiments.settings import TrainingSettings
from spectra_pretrain.experiments.summary import by_task, over_seeds

COST = ("trained_parameters", "step_tokens_per_second", "gradient_bytes", "optimizer_bytes")
ON_TEXT = (
    "train",
    "seed",
    "tokens",
    "train_loss",
    "validation_perplexity",
    *COST,
    "peak_memory_bytes",
)


@dataclass(frozen=True)
class Comparison(Experiment):
    """An experiment whose cells are runs of a lab; its settings are `TrainingSettings`."""

    cells: Callable[[Any], Iterator[Cell]]
    """Lists the runs, from its settings."""
    claims: Callable[[Sequence[Row]], Iterator[str]]
    """Compares the paper's claims with the rows, in words."""
    curves: bool = False
    """Whether the figure draws every evaluation of the runs."""
    by_task: bool = False
    """Whether the printed table has a column for every task."""

    def run(
        self,
        checkpoint: str,
        settings: Any,
        folder: Path,
        *,
        device: str = "cpu",
        progress: Progress = silent,
    ) -> Outcome:
        """Make every missing run, and write the results.

        If runs fail, the outcome says so, and no claim of the paper is compared at their ERR.

        Raises
        ------
        InputError
            When the folder cannot be written, another process writes to it, or something is
            missing.
        """
        place = settings.lab or folder
        for written_to in {folder, place}:
            require_writable(written_to, folder=True)
        settings = Lab.chosen(settings, place, device)
        lab = Lab(checkpoint, settings, place, device, progress)
        cells = list(self.cells(settings))
        lab.require(cells)
        make_folder(folder)
        with locked(folder):
            remove_leftovers(folder)
            rows, failed = _measured(lab, cells)
            known = {"experiment": self.name, "checkpoint": checkpoint, "device": device}
            results = folder / f"{self.name}.json"
            known |= settings.to_dict()
            write_results(results, known, rows, failed=list(failed.values()))
            points, claims = list(self.points(rows)), tuple(self._claimed(rows, failed))
            shape = Shape(self.name, self.presentation, points, claims, tuple(self.table(rows)))
            subtitle = f"{Path(checkpoint).name}, {settings.steps} steps in {settings.precision}"
            outcome = written(shape, rows, folder, subtitle, results)
        return replace(outcome, failed=tuple(failed.values()))

    def table(self, rows: Sequence[Row]) -> list[Row]:
        """The rows to print: one for each method, over seeds."""
        return list(by_task(rows) if self.by_task else over_seeds(rows, self.presentation.columns))

    def points(self, rows: Sequence[Row]) -> Iterator[Point]:
        """The evaluations or last figures of every method: means over seeds and tasks."""
        found: dict[tuple[Any, str], list[tuple[float, float]]] = {}
        for row in rows:
            for key, x, y in self._evaluated(row):
                found.setdefault((key, str(row["train"])), []).append((x, y))
        for (_, label), points in found.items():
            xs, ys = zip(*points, strict=True)
            yield fmean(xs), fmean(ys), label

    def _evaluated(self, row: Row) -> Iterator[tuple[Any, float, float]]:
        """The key of each point within its run, and its x and y.

        The key of an evaluation is its step: with every seed, a task's questions have other tokens.
        """
        if not self.curves:
            x, y = row[self.presentation.x], row[self.presentation.y]
            yield x, x, y
            return
        for evaluation in row["evaluations"]:
            loss = evaluation["validation_loss"]
            perplexity = self.presentation.y == "validation_perplexity"
            yield evaluation["step"], evaluation["tokens"], math.exp(loss) if perplexity else loss

    def _claimed(self, rows: Sequence[Row], failed: Mapping[Cell, str]) -> Iterator[str]:
        """The paper's claims at the ERRs at which every run finished."""
        lacking = {cell.err for cell in failed}
        for err in sorted(lacking):
            count = sum(cell.err == err for cell in failed)
            yield f"not compared at ERR {err:.0%}; runs that failed there: {count}"
        whole = [row for row in rows if row["err"] not in lacking]
        if whole:
            yield from self.claims(whole)


def cells(
    settings: TrainingSettings,
    err: float,
    methods: Sequence[str],
    tasks: Sequence[str | None] = (None,),
) -> Iterator[Cell]:
    """A run for every method, on text or every task, with every seed."""
    for train, task, seed in product(methods, tasks, settings.seeds):
        yield Cell(err, train, seed, task)


def _measured(lab: Lab, cells: Sequence[Cell]) -> tuple[list[Row], dict[Cell, str]]:
    """The rows of runs that finish, and the reasons why others did not."""
    rows, failed = [], {}
    for done, cell in enumerate(cells):
        lab.progress(f"run {cell.name}", done, len(cells))
        try:
            rows.append(lab.row(cell))
        except FailedError as error:
            failed[cell] = str(error)
            lab.progress(f"run {cell.name} failed", done + 1, len(cells))
    lab.progress("runs", len(cells), len(cells))
    return rows, failed

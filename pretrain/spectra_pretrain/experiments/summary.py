"""Summaries of runs over seeds and tasks: samples, and the rows of printed tables."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from spectra.experiments.ledger import Row

LEVEL = 0.01
"""Relative difference up to which two figures are level."""
CONFIDENCE = 0.95
Verdict = Literal["below", "level", "above", "open"]


@dataclass(frozen=True)
class Sample:
    """One figure of a method, measured with every seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    def against(self, other: "Sample", noise: float = 0.0) -> Verdict:
        """Compare it with another, seed by seed; open if nothing can be said.

        With two or more seeds, the 95 % interval of the mean difference decides (Student's t):
        level if it lies within 1 %, below or above if it lies on one side. With one seed, the
        difference alone decides, and is open if it is under 1 %.

        Parameters
        ----------
        other
            The same figure of another method, with the same seeds.
        noise
            Difference up to which the verdict is open in any case.
        """
        differences = [a - b for a, b in zip(self.values, other.values, strict=True)]
        mean = statistics.fmean(differences)
        margin = LEVEL * max(abs(self.mean), abs(other.mean))
        if len(differences) == 1:
            low = high = mean
            if abs(mean) <= max(margin, noise):
                return "open"
        else:
            error = statistics.stdev(differences) / math.sqrt(len(differences))
            from scipy.stats import t

            reach = error * float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
            low, high = mean - reach, mean + reach
            if max(-low, high) <= margin:
                return "level" if noise <= margin else "open"
        if low <= 0 <= high or abs(mean) <= noise:
            return "open"
        return "below" if mean < 0 else "above"

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} ± {statistics.stdev(self.values):.2g}"


def of(rows: Sequence[Row], train: str, err: float | None = None) -> list[Row]:
    """A method's runs, with every seed."""
    return [r for r in rows if r["train"] == train and (err is None or r["err"] == err)]


def sample(rows: Sequence[Row], column: str) -> Sample:
    """A column over seeds; with several tasks, their mean for each seed."""
    seeds = dict.fromkeys(row["seed"] for row in rows)
    means = [
        statistics.fmean(float(row[column]) for row in rows if row["seed"] == seed)
        for seed in seeds
    ]
    return Sample(tuple(means))


def measured(rows: Sequence[Row], column: str) -> float | None:
    """The mean of a column; None if a run lacks it."""
    values = [row[column] for row in rows]
    return None if None in values else statistics.fmean(values)


def chance(higher: Sequence[Row], lower: Sequence[Row]) -> float:
    """Difference of mean accuracies over tasks below which so few questions say nothing.

    The reach of the 95 % interval of the difference towards 0, from the Wilson intervals of both
    (Newcombe 1998, method 10), for independent tasks. Every seed has the same questions, so they
    count once.
    """
    return math.hypot(_reach(higher, "accuracy_low"), _reach(lower, "accuracy_high"))


def _reach(rows: Sequence[Row], side: str) -> float:
    """Distance from the mean accuracy over tasks to one side of its interval."""
    tasks = dict.fromkeys(row["task"] for row in rows)
    reaches = [
        statistics.fmean(row["accuracy"] - row[side] for row in rows if row["task"] == task)
        for task in tasks
    ]
    return math.hypot(*reaches) / len(reaches)


def over_seeds(rows: Sequence[Row], columns: Sequence[str]) -> Iterator[Row]:
    """A row for every method and ERR: values that differ by seed as mean and deviation."""
    for err, train in dict.fromkeys((row["err"], row["train"]) for row in rows):
        mine = of(rows, train, err)
        yield {column: _combined(mine, column) for column in columns if column != "seed"}


def by_task(rows: Sequence[Row]) -> Iterator[Row]:
    """A row for every method and ERR, as in the paper's table 5: accuracies by task, in percent."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for err, train in dict.fromkeys((row["err"], row["train"]) for row in rows):
        mine = of(rows, train, err)
        row: Row = {"err": err, "train": train}
        for task in tasks:
            of_task = [r for r in mine if r["task"] == task]
            row[task] = _percent(sample(of_task, "accuracy")) if of_task else None
        whole = len(mine) == len(tasks) * len({r["seed"] for r in mine})
        yield row | {
            "mean": _percent(sample(mine, "accuracy")) if whole else None,
            "unparsed": sum(r["unparsed"] for r in mine),
        }


def _combined(rows: Sequence[Row], column: str) -> object:
    values = [row[column] for row in rows]
    if None in values:
        return None
    if len(set(values)) == 1:
        return values[0]
    if column in ("train_loss", "validation_perplexity", "validation_loss", "accuracy"):
        return str(sample(rows, column))
    return statistics.fmean(values)


def _percent(accuracies: Sample) -> str:
    return str(Sample(tuple(100 * value for value in accuracies.values)))

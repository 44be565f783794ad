"""Runs over seeds and tasks, brought together: samples, and the rows of printed tables."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scipy.stats import ttest_ind

from spectra.experiments.ledger import Row

ALIKE = 0.01
"""Relative difference up to which nothing is said."""
CHANCE = 0.05
"""Probability from which on a difference between seeds may be chance."""


@dataclass(frozen=True)
class Sample:
    """One figure of a method, measured with every seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    def like(self, other: "Sample") -> bool:
        """Whether seeds explain the difference (Welch's t-test), or it is under 1 %."""
        if abs(self.mean - other.mean) <= ALIKE * max(abs(self.mean), abs(other.mean)):
            return True
        if min(len(self.values), len(other.values)) < 2:
            return False
        # seeds that agree to the last bit have no variance to test against
        if not (statistics.stdev(self.values) or statistics.stdev(other.values)):
            return False
        return float(ttest_ind(self.values, other.values, equal_var=False).pvalue) > CHANCE

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} ± {statistics.stdev(self.values):.2g}"


def of(rows: Sequence[Row], train: str, err: float | None = None) -> list[Row]:
    """A method's runs, with every seed."""
    return [r for r in rows if r["train"] == train and (err is None or r["err"] == err)]


def sample(rows: Sequence[Row], column: str) -> Sample:
    """A column over seeds; of several tasks their mean with each seed."""
    seeds = dict.fromkeys(row["seed"] for row in rows)
    means = [
        statistics.fmean(float(row[column]) for row in rows if row["seed"] == seed)
        for seed in seeds
    ]
    return Sample(tuple(means))


def measured(rows: Sequence[Row], column: str) -> float | None:
    """The mean of a column; None where a run lacks it."""
    values = [row[column] for row in rows]
    return None if None in values else statistics.fmean(values)


def standard_error(rows: Sequence[Row]) -> float:
    """Of a mean accuracy, by the number of questions: those of one seed, as all are asked alike."""
    share = statistics.fmean(row["accuracy"] for row in rows)
    asked = sum(row["total"] for row in rows if row["seed"] == rows[0]["seed"])
    return math.sqrt(share * (1 - share) / asked)


def over_seeds(rows: Sequence[Row], columns: Sequence[str]) -> Iterator[Row]:
    """A row of every method and ERR: what seeds differ in as mean and deviation."""
    for err, train in dict.fromkeys((row["err"], row["train"]) for row in rows):
        mine = of(rows, train, err)
        yield {column: _brought(mine, column) for column in columns if column != "seed"}


def by_task(rows: Sequence[Row]) -> Iterator[Row]:
    """A row of every method and ERR, as in the paper's table 5: accuracies by task, in percent."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for err, train in dict.fromkeys((row["err"], row["train"]) for row in rows):
        mine = of(rows, train, err)
        row: Row = {"err": err, "train": train}
        for task in tasks:
            row[task] = _percent(sample([r for r in mine if r["task"] == task], "accuracy"))
        yield row | {
            "mean": _percent(sample(mine, "accuracy")),
            "unparsed": sum(r["unparsed"] for r in mine),
        }


def _brought(rows: Sequence[Row], column: str) -> object:
    values = [row[column] for row in rows]
    if len(set(values)) == 1 or None in values:
        return values[0]
    if column in ("train_loss", "validation_perplexity", "validation_loss", "accuracy"):
        return str(sample(rows, column))
    return statistics.fmean(values)


def _percent(accuracies: Sample) -> str:
    return str(Sample(tuple(100 * value for value in accuracies.values)))

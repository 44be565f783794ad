"""Figures 1, 5 and 8 and tables 4 and 5: their runs, and what they say of the paper's claims."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from spectra.experiments.ledger import Row
from spectra.experiments.run import Experiment
from spectra.experiments.tuning import Tuning
from spectra_pretrain.experiments.claims import claims1, claims4, claims5, claims8, claims_of_tasks
from spectra_pretrain.experiments.lab import Cell
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
class Result:
    """One of the paper's results that need training."""

    experiment: Experiment
    cells: Callable[[Tuning], Iterator[Cell]]
    claims: Callable[[Sequence[Row]], Iterator[str]]
    """What the paper says, and what was measured."""
    curves: bool = False
    """Whether the figure draws every evaluation of the runs."""
    by_task: bool = False
    """Whether the printed table has a column of every task."""

    def table(self, rows: Sequence[Row]) -> list[Row]:
        """The rows to print: of a method, over seeds."""
        return list(by_task(rows) if self.by_task else over_seeds(rows, self.experiment.columns))


def figure1(tuning: Tuning) -> Iterator[Cell]:
    """LRC-only against full finetuning, on text."""
    yield from _cells(tuning, tuning.tuning_err, ("lrc", "full"))


def figure5(tuning: Tuning) -> Iterator[Cell]:
    """LRC-only against N-LRC-only, on text."""
    yield from _cells(tuning, tuning.tuning_err, ("lrc", "nlrc"))


def figure8(tuning: Tuning) -> Iterator[Cell]:
    """LRC-only against full finetuning and LoRA, on one task."""
    task = (tuning.figure8_task,)
    yield from _cells(tuning, tuning.tuning_err, ("lrc", "full", "lora"), task)


def table4(tuning: Tuning) -> Iterator[Cell]:
    """LoRA, GaLore and LRC-only by ERR, on text."""
    for err in tuning.tuning_errs:
        yield from _cells(tuning, err, ("lora", "galore", "lrc"))


def table5(tuning: Tuning) -> Iterator[Cell]:
    """Six tasks: the dense model and compressed ones, by every method."""
    for err in tuning.task_errs:
        methods = ("full", "lora", "galore") if err == 0 else ("full", "lora", "galore", "lrc")
        yield from _cells(tuning, err, methods, tuning.tasks)


def _cells(
    tuning: Tuning, err: float, methods: Sequence[str], tasks: Sequence[str | None] = (None,)
) -> Iterator[Cell]:
    for train, task, seed in product(methods, tasks, tuning.seeds):
        yield Cell(err, train, seed, task)


RESULTS = {
    "figure1": Result(
        Experiment(
            "Figure 1: finetuning through LRCs alone against full finetuning",
            ON_TEXT, "tokens", "validation_perplexity", "tokens",
        ),
        figure1, claims1, curves=True,
    ),
    "figure5": Result(
        Experiment(
            "Figure 5: finetuning LRCs alone against N-LRCs alone",
            ON_TEXT, "tokens", "validation_perplexity", "tokens",
        ),
        figure5, claims5, curves=True,
    ),
    "figure8": Result(
        Experiment(
            "Figure 8: finetuning for a task through LRCs, all weights, LoRA",
            ("train", "task", "seed", "validation_loss", "accuracy", "correct", "total", "unparsed",
             *COST),
            "tokens", "validation_loss", "tokens",
        ),
        figure8, claims8, curves=True,
    ),
    "table4": Result(
        Experiment(
            "Table 4: continual finetuning by LoRA, GaLore and WeLore, by ERR",
            ("err", *ON_TEXT), "err", "validation_perplexity",
        ),
        table4, claims4,
    ),
    "table5": Result(
        Experiment(
            "Table 5: six tasks, dense and compressed",
            ("err", "train", "task", "seed", "accuracy", "accuracy_low", "accuracy_high",
             "correct", "total", "unparsed"),
            "err", "accuracy", log=False, bounds=(0.0, 1.0),
        ),
        table5, claims_of_tasks, by_task=True,
    ),
}  # fmt: skip

"""Figures 1, 5 and 8 and tables 4 and 5: their runs, and what they say of the paper's claims."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from pretrain.experiments.claims import claims1, claims4, claims5, claims8, claims_of_tasks
from pretrain.experiments.lab import Lab
from pretrain.experiments.summary import by_task, over_seeds
from spectra.experiments.ledger import Row
from spectra.experiments.run import Experiment

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
    rows: Callable[[Lab], Iterator[Row]]
    claims: Callable[[Sequence[Row]], Iterator[str]]
    """What the paper says, and what was measured."""
    curves: bool = False
    """Whether the figure draws every evaluation of the runs."""
    by_task: bool = False
    """Whether the printed table has a column of every task."""

    def table(self, rows: Sequence[Row]) -> list[Row]:
        """The rows to print: of a method, over seeds."""
        return list(by_task(rows) if self.by_task else over_seeds(rows, self.experiment.columns))


def figure1(lab: Lab) -> Iterator[Row]:
    """LRC-only against full finetuning, on text."""
    yield from _on_text(lab, lab.tuning.tuning_err, ("lrc", "full"))


def figure5(lab: Lab) -> Iterator[Row]:
    """LRC-only against N-LRC-only, on text."""
    yield from _on_text(lab, lab.tuning.tuning_err, ("lrc", "nlrc"))


def figure8(lab: Lab) -> Iterator[Row]:
    """LRC-only against full finetuning and LoRA, on one task."""
    yield from _on_tasks(
        lab, lab.tuning.tuning_err, ("lrc", "full", "lora"), (lab.tuning.figure8_task,)
    )


def table4(lab: Lab) -> Iterator[Row]:
    """LoRA, GaLore and LRC-only by ERR, on text."""
    for err in lab.tuning.tuning_errs:
        yield from _on_text(lab, err, ("lora", "galore", "lrc"))


def table5(lab: Lab) -> Iterator[Row]:
    """Six tasks: the dense model and compressed ones, by every method."""
    for err in lab.tuning.task_errs:
        methods = ("full", "lora", "galore") if err == 0 else ("full", "lora", "galore", "lrc")
        yield from _on_tasks(lab, err, methods, lab.tuning.tasks)


def _on_text(lab: Lab, err: float, methods: Sequence[str]) -> Iterator[Row]:
    for train, seed in product(methods, lab.tuning.seeds):
        yield {"err": err, "train": train, "seed": seed, **lab.on_text(err, train, seed)}


def _on_tasks(lab: Lab, err: float, methods: Sequence[str], tasks: Sequence[str]) -> Iterator[Row]:
    for train, task, seed in product(methods, tasks, lab.tuning.seeds):
        key = {"err": err, "train": train, "task": task, "seed": seed}
        yield key | lab.on_task(err, train, task, seed)


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
            "tokens", "validation_loss", "tokens", log=False,
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
            "err", "accuracy", log=False,
        ),
        table5, claims_of_tasks, by_task=True,
    ),
}  # fmt: skip

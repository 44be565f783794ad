"""Figures 1, 5 and 8 and tables 4 and 5: their runs, and what they say of the paper's claims."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pretrain.experiments.lab import Lab
from spectra.experiments.ledger import Ledger, Row
from spectra.experiments.run import Experiment
from spectra.experiments.tuning import Tuning

ALIKE = 0.01
"""Relative difference up to which one run of each says nothing."""
COST = ("trained_parameters", "step_tokens_per_second", "gradient_bytes", "optimizer_bytes")
ON_TEXT = ("train", "tokens", "train_loss", "validation_perplexity", *COST, "peak_memory_bytes")


@dataclass(frozen=True)
class Result:
    """One of the paper's results that need training."""

    experiment: Experiment
    rows: Callable[[Lab, Ledger], Iterator[Row]]
    claims: Callable[[Sequence[Row]], Iterator[str]]
    """What the paper says, and what was measured."""
    curves: bool = False
    """Whether the figure draws every evaluation of the runs."""
    tasks: Callable[[Tuning], Sequence[str]] = lambda tuning: ()
    """Those that are learnt."""


def figure1(lab: Lab, ledger: Ledger) -> Iterator[Row]:
    """LRC-only against full finetuning, on text."""
    yield from _on_text(lab, ledger, lab.tuning.tuning_err, ("lrc", "full"))


def figure5(lab: Lab, ledger: Ledger) -> Iterator[Row]:
    """LRC-only against N-LRC-only, on text."""
    yield from _on_text(lab, ledger, lab.tuning.tuning_err, ("lrc", "nlrc"))


def figure8(lab: Lab, ledger: Ledger) -> Iterator[Row]:
    """LRC-only against full finetuning and LoRA, on one task."""
    err, task = lab.tuning.tuning_err, lab.tuning.figure8_task
    for train in ("lrc", "full", "lora"):
        for seed in lab.tuning.seeds:
            key = {"err": err, "train": train, "task": task, "seed": seed}
            yield ledger.cell(key, partial(lab.on_task, err, train, task, seed))


def table4(lab: Lab, ledger: Ledger) -> Iterator[Row]:
    """LoRA, GaLore and LRC-only by ERR, on text."""
    for err in lab.tuning.tuning_errs:
        yield from _on_text(lab, ledger, err, ("lora", "galore", "lrc"))


def table5(lab: Lab, ledger: Ledger) -> Iterator[Row]:
    """Six tasks: the dense model and compressed ones, by every method."""
    for err in lab.tuning.task_errs:
        methods = ("full", "lora", "galore") if err == 0 else ("full", "lora", "galore", "lrc")
        for train in methods:
            for task in lab.tuning.tasks:
                for seed in lab.tuning.seeds:
                    key = {"err": err, "train": train, "task": task, "seed": seed}
                    yield ledger.cell(key, partial(lab.on_task, err, train, task, seed))


def _on_text(lab: Lab, ledger: Ledger, err: float, methods: Sequence[str]) -> Iterator[Row]:
    for train in methods:
        for seed in lab.tuning.seeds:
            key = {"err": err, "train": train, "seed": seed}
            yield ledger.cell(key, partial(lab.on_text, err, train, seed))


def claims1(rows: Sequence[Row]) -> Iterator[str]:
    """Of figure 1."""
    lrc, full = (_of(rows, train) for train in ("lrc", "full"))
    yield _compared(
        "LRC-only reaches the perplexity of full finetuning",
        lrc["validation_perplexity"],
        full["validation_perplexity"],
        f"{lrc['validation_perplexity']:.4g} against {full['validation_perplexity']:.4g}",
    )
    before = _first(full)
    whole = before - full["validation_loss"]
    if whole > 0:
        share = (before - lrc["validation_loss"]) / whole
        yield f"LRC-only gains {share:.0%} of what full finetuning gains of the loss"
    else:
        yield (
            f"full finetuning gains nothing here, from {before:.4g} to "
            f"{full['validation_loss']:.4g} nats: a lower --learning-rate may"
        )
    yield _speed("LRC-only", lrc, "full finetuning", full, 3.0)
    yield _trained(lrc, full, 0.35)


def claims5(rows: Sequence[Row]) -> Iterator[str]:
    """Of figure 5."""
    lrc, nlrc = (_of(rows, train) for train in ("lrc", "nlrc"))
    yield _compared(
        "LRC-only is below N-LRC-only in perplexity after equal tokens",
        lrc["validation_perplexity"],
        nlrc["validation_perplexity"],
        f"{lrc['validation_perplexity']:.4g} against {nlrc['validation_perplexity']:.4g}",
    )
    yield _speed("LRC-only", lrc, "N-LRC-only", nlrc, 2.0)
    yield _trained(lrc, nlrc, 1 / 3)


def claims8(rows: Sequence[Row]) -> Iterator[str]:
    """Of figure 8."""
    lrc, full, lora = (_of(rows, train) for train in ("lrc", "full", "lora"))
    near = abs(lrc["validation_loss"] - full["validation_loss"])
    far = abs(lora["validation_loss"] - full["validation_loss"])
    yield _compared(
        "LRC-only follows the loss of full finetuning closer than LoRA does",
        near,
        far,
        f"{near:.3g} against {far:.3g} nats away",
    )
    yield _speed("LRC-only", lrc, "LoRA", lora, 1.0)
    yield from _doubtful([row for row in rows if row.get("total")])


def claims4(rows: Sequence[Row]) -> Iterator[str]:
    """Of table 4."""
    for err in dict.fromkeys(row["err"] for row in rows):
        here = [row for row in rows if row["err"] == err]
        lrc = _of(here, "lrc")
        best = min(r["validation_perplexity"] for r in here if r["train"] != "lrc")
        yield _compared(
            f"at ERR {err:.0%} LRC-only is below LoRA and GaLore in perplexity",
            lrc["validation_perplexity"],
            best,
            f"{lrc['validation_perplexity']:.4g} against {best:.4g}",
        )


def claims5_tasks(rows: Sequence[Row]) -> Iterator[str]:
    """Of table 5."""
    compressed = [err for err in dict.fromkeys(row["err"] for row in rows) if err > 0]
    for err in compressed:
        means = {
            train: _mean([r["accuracy"] for r in rows if r["err"] == err and r["train"] == train])
            for train in ("lrc", "lora", "galore")
        }
        best = max(means["lora"], means["galore"])
        yield _compared(
            f"at ERR {err:.0%} LRC-only is above LoRA and GaLore, in the mean over tasks",
            best,
            means["lrc"],
            f"{means['lrc']:.1%} against {best:.1%}",
        )
    yield from _doubtful(rows)


def _doubtful(rows: Sequence[Row]) -> Iterator[str]:
    widths = [row["accuracy_high"] - row["accuracy_low"] for row in rows]
    unparsed = sum(row["unparsed"] for row in rows)
    yield (
        f"95 % intervals of accuracies are up to {max(widths):.0%} wide; {unparsed} of "
        f"{sum(row['total'] for row in rows)} answers could not be read and count as wrong"
    )


def _speed(one: str, mine: Row, other: str, theirs: Row, paper: float) -> str:
    if not (mine["step_tokens_per_second"] and theirs["step_tokens_per_second"]):
        return "the speed was not measured: a run was resumed after its last step"
    ratio = mine["step_tokens_per_second"] / theirs["step_tokens_per_second"]
    return (
        f"{one} trains {ratio:.2f} times the tokens/s of {other} "
        f"(paper: {'more' if paper == 1 else f'about {paper:g} times'})"
    )


def _trained(one: Row, other: Row, paper: float) -> str:
    share = one["trained_parameters"] / other["trained_parameters"]
    return f"it trains {share:.2f} of the parameters (paper: about {paper:.2f})"


def _compared(claim: str, lower: float, higher: float, numbers: str) -> str:
    """A claim that one number is below another, and how they are."""
    if abs(lower - higher) <= ALIKE * max(abs(lower), abs(higher)):
        return f"no difference of 1 % where the paper says: {claim}: {numbers}"
    return f"{'as in' if lower < higher else 'UNLIKE'} the paper: {claim}: {numbers}"


def _of(rows: Sequence[Row], train: str) -> Row:
    return next(row for row in rows if row["train"] == train)


def _first(row: Row) -> float:
    """Validation loss before the first step."""
    return float(row["evaluations"][0]["validation_loss"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


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
            ("train", "task", "validation_loss", "accuracy", "correct", "total", "unparsed", *COST),
            "tokens", "validation_loss", "tokens", log=False,
        ),
        figure8, claims8, curves=True, tasks=lambda tuning: (tuning.figure8_task,),
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
        table5, claims5_tasks, tasks=lambda tuning: tuning.tasks,
    ),
}  # fmt: skip

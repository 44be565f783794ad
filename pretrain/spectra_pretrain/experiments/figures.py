"""Figures 1, 5 and 8: LRCs alone against other ways of finetuning, at one ERR."""

from collections.abc import Iterator
from dataclasses import dataclass

from spectra.experiments.experiment import Presentation
from spectra.experiments.settings import Check
from spectra_pretrain.experiments.claims import claims1, claims5, claims8
from spectra_pretrain.experiments.comparison import COST, ON_TEXT, Comparison, cells
from spectra_pretrain.experiments.lab import Cell
from spectra_pretrain.experiments.settings import (
    LoraSettings,
    OneErrSettings,
    TaskSettings,
    TextSettings,
    known_tasks,
)

ANSWERS = ("accuracy", "correct", "total", "unparsed")


@dataclass(frozen=True)
class FigureSettings(OneErrSettings, TextSettings):
    """Options of figures 1 and 5."""


@dataclass(frozen=True)
class Figure8Settings(OneErrSettings, LoraSettings, TaskSettings):
    """Options of figure 8."""

    figure8_task: str = "strategyqa"
    """Name of the task."""

    def checks(self) -> list[Check]:
        """Checks of these options."""
        return [*super().checks(), *known_tasks(self.figure8_task)]


def figure1(settings: FigureSettings) -> Iterator[Cell]:
    """LRC-only against full finetuning, on text."""
    yield from cells(settings, settings.tuning_err, ("lrc", "full"))


def figure5(settings: FigureSettings) -> Iterator[Cell]:
    """LRC-only against N-LRC-only, on text."""
    yield from cells(settings, settings.tuning_err, ("lrc", "nlrc"))


def figure8(settings: Figure8Settings) -> Iterator[Cell]:
    """LRC-only against full finetuning and LoRA, on one task."""
    task = (settings.figure8_task,)
    yield from cells(settings, settings.tuning_err, ("lrc", "full", "lora"), task)


FIGURE1 = Comparison(
    "figure1",
    FigureSettings,
    Presentation(
        "Figure 1: finetuning through LRCs alone against full finetuning",
        ON_TEXT,
        "tokens",
        "validation_perplexity",
        "tokens",
    ),
    figure1,
    claims1,
    curves=True,
)
FIGURE5 = Comparison(
    "figure5",
    FigureSettings,
    Presentation(
        "Figure 5: finetuning LRCs alone against N-LRCs alone",
        ON_TEXT,
        "tokens",
        "validation_perplexity",
        "tokens",
    ),
    figure5,
    claims5,
    curves=True,
)
FIGURE8 = Comparison(
    "figure8",
    Figure8Settings,
    Presentation(
        "Figure 8: finetuning for a task through LRCs, all weights, LoRA",
        ("train", "task", "seed", "validation_loss", *ANSWERS, *COST),
        "tokens",
        "validation_loss",
        "tokens",
    ),
    figure8,
    claims8,
    curves=True,
)

"""Tables 4 and 5: LoRA, GaLore and LRCs alone by ERR, on text and on tasks."""

from collections.abc import Iterator
from dataclasses import dataclass

from spectra.experiments.experiment import Presentation
from spectra.experiments.settings import Check
from spectra.keywords import Share
from spectra_data.tasks import TASKS
from spectra_pretrain.experiments.claims import claims4, claims_of_tasks
from spectra_pretrain.experiments.comparison import ON_TEXT, Comparison, cells
from spectra_pretrain.experiments.lab import Cell
from spectra_pretrain.experiments.settings import (
    GaloreSettings,
    LoraSettings,
    TaskSettings,
    TextSettings,
    distinct,
    known_tasks,
)

ACCURACY = ("accuracy", "accuracy_low", "accuracy_high", "correct", "total", "unparsed")


@dataclass(frozen=True)
class Table4Settings(GaloreSettings, LoraSettings, TextSettings):
    """Options of table 4."""

    tuning_errs: tuple[Share, ...] = (0.3, 0.5, 0.6, 0.7)
    """Effective rank reductions."""

    def checks(self) -> list[Check]:
        """Checks of these options."""
        wrong = not all(0 < err < 1 for err in self.tuning_errs)
        return [
            *super().checks(),
            (wrong, "--tuning-errs are above 0 and below 1"),
            *distinct("tuning_errs", self.tuning_errs),
        ]


@dataclass(frozen=True)
class Table5Settings(GaloreSettings, LoraSettings, TaskSettings):
    """Options of table 5."""

    task_errs: tuple[Share, ...] = (0.0, 0.3, 0.4, 0.5)
    """Effective rank reductions; 0 is the dense model."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Names of the tasks."""

    def checks(self) -> list[Check]:
        """Checks of these options."""
        wrong = not all(0 <= err < 1 for err in self.task_errs)
        return [
            *super().checks(),
            *known_tasks(*self.tasks),
            (wrong, "--task-errs are from 0, the dense model, up to 1"),
            *distinct("tasks", self.tasks),
            *distinct("task_errs", self.task_errs),
        ]


def table4(settings: Table4Settings) -> Iterator[Cell]:
    """LoRA, GaLore and LRC-only by ERR, on text."""
    for err in settings.tuning_errs:
        yield from cells(settings, err, ("lora", "galore", "lrc"))


def table5(settings: Table5Settings) -> Iterator[Cell]:
    """Six tasks: the dense model and compressed ones, by every method."""
    for err in settings.task_errs:
        methods = ("full", "lora", "galore") if err == 0 else ("full", "lora", "galore", "lrc")
        yield from cells(settings, err, methods, settings.tasks)


TABLE4 = Comparison(
    "table4",
    Table4Settings,
    Presentation(
        "Table 4: continual finetuning by LoRA, GaLore and WeLore, by ERR",
        ("err", *ON_TEXT),
        "err",
        "validation_perplexity",
    ),
    table4,
    claims4,
)
TABLE5 = Comparison(
    "table5",
    Table5Settings,
    Presentation(
        "Table 5: six tasks, dense and compressed",
        ("err", "train", "task", "seed", *ACCURACY),
        "err",
        "accuracy",
        log=False,
        bounds=(0.0, 1.0),
    ),
    table5,
    claims_of_tasks,
    by_task=True,
)

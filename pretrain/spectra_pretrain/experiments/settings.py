"""Options that experiments with finetuning share."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from spectra.compression.settings import METHODS
from spectra.experiments.settings import CalibrationSettings, Check, DataSettings, Settings, option
from spectra.keywords import Share
from spectra_data.sources import TEXT_FIELD
from spectra_data.tasks import TASKS, load_splits
from spectra_pretrain.options import AUTO


@dataclass(frozen=True)
class TrainingSettings(CalibrationSettings, ABC):
    """Options of every run."""

    steps: int = 200
    """Optimizer steps of every run; the paper has 10 000 on text, 500 to 5000 on a task."""
    tuning_batch: int = 4
    """Windows or questions per step; a pass has one window, or all questions of the step."""
    learning_rate: float = 3e-4
    """Learning rate of every run, for all methods; the paper has 5e-5 on text, 1e-4 on tasks."""
    compression: str = "svd"
    """Method that factors LRCs: svd is WeLore's; whiten and fisher use activations."""
    seeds: tuple[int, ...] = (0,)
    """Seeds with which every run is repeated; the paper's claims are compared with means."""
    precision: Literal["auto", "bfloat16", "float32"] = AUTO
    """Precision of the runs; auto is that of the runs in the lab if there are any, else bfloat16
    on a device that has instructions for it, else float32."""
    lab: Path | None = None
    """Folder of compressed checkpoints and runs, shared by all experiments that name it;
    in --out by default."""

    EVALUATIONS: ClassVar[int]
    """Number of evaluations of a run, evenly over its steps."""

    def checks(self) -> list[Check]:
        """Checks of these options."""
        return [
            *super().checks(),
            *self.at_least_one("steps", "tuning_batch"),
            (
                self.compression not in METHODS,
                f"no compression {self.compression!r}; there are: {', '.join(METHODS)}",
            ),
            (
                not (self.learning_rate > 0 and math.isfinite(self.learning_rate)),
                f"--learning-rate is above 0, not {self.learning_rate}",
            ),
            *distinct("seeds", self.seeds),
            *self._checks_of_calibration(),
        ]

    def finetune_options(self, train: str, task: str | None) -> dict[str, Any]:
        """Options of `spectra finetune` for a run, in addition to those that all runs have."""
        return {
            "steps": self.steps,
            "seq-len": self.seq_len,
            "batch-size": self.tuning_batch,
            "learning-rate": self.learning_rate,
            "precision": self.precision,
        }

    @abstractmethod
    def content(self, task: str | None) -> str:
        """Hash of the data that a run is trained on."""

    def to_dict(self) -> dict[str, Any]:
        """Options for the written configuration; results do not depend on the lab."""
        return {name: value for name, value in super().to_dict().items() if name != "lab"}

    def _checks_of_calibration(self) -> list[Check]:
        """Checks that options of calibration go with a method that uses activations."""
        knowing = ", ".join(method for method in METHODS if method != "svd")
        also = {"seed": ", and --seeds repeats runs"}
        return [
            (
                self.compression == "svd" and getattr(self, name) != getattr(type(self), name),
                f"{option(name)} goes with --compression {knowing}{also.get(name, '')}: "
                "leave it out",
            )
            for name in ("calibration", "calibration_windows", "batch_size", "seed")
        ]


@dataclass(frozen=True)
class TextSettings(TrainingSettings, DataSettings):
    """Runs on text."""

    train_data: str | None = None
    """Text to finetune on, a part of which is held out for validation; --data by default."""

    EVALUATIONS = 10

    def finetune_options(self, train: str, task: str | None) -> dict[str, Any]:
        """Options of `spectra finetune` for a run, in addition to those that all runs have."""
        own = {"data": self._text, "validation-fraction": 0.05, "micro-batch-size": 1}
        if self.text_field != TEXT_FIELD:  # runs of earlier versions stay valid
            own["text-field"] = self.text_field
        return super().finetune_options(train, task) | own

    def content(self, task: str | None) -> str:
        """Hash of the text."""
        return self.opened(self._text).fingerprint()

    @property
    def _text(self) -> str:
        return self.train_data or self.data


@dataclass(frozen=True)
class TaskSettings(TrainingSettings):
    """Runs on tasks."""

    task_data: str = "data/tasks"
    """Folder that contains the tasks' folders."""
    questions: int = 64
    """Number of test questions of every task."""

    EVALUATIONS = 4

    def checks(self) -> list[Check]:
        """Checks of these options."""
        return [*super().checks(), *self.at_least_one("questions")]

    def finetune_options(self, train: str, task: str | None) -> dict[str, Any]:
        """Options of `spectra finetune` for a run, in addition to those that all runs have."""
        own = {"task": task, "task-data": self.task_data, "validation-fraction": 0.1}
        return super().finetune_options(train, task) | own | {"questions": self.questions}

    def content(self, task: str | None) -> str:
        """Hash of a task's questions."""
        return load_splits(str(task), self.task_data).fingerprint()


@dataclass(frozen=True)
class OneErrSettings(Settings):
    """Runs at one effective rank reduction."""

    tuning_err: Share = 0.5
    """Effective rank reduction of the compressed checkpoint."""

    def checks(self) -> list[Check]:
        """Checks of these options."""
        wrong = not 0 < self.tuning_err < 1
        return [*super().checks(), (wrong, "--tuning-err is above 0 and below 1")]


@dataclass(frozen=True)
class LoraSettings(TrainingSettings):
    """LoRA among the methods."""

    lora_rank: int = 16
    """Rank of LoRA's adapters."""

    def checks(self) -> list[Check]:
        """Checks of these options."""
        return [*super().checks(), *self.at_least_one("lora_rank")]

    def finetune_options(self, train: str, task: str | None) -> dict[str, Any]:
        """Options of `spectra finetune` for a run, in addition to those that all runs have."""
        own = {"lora-rank": self.lora_rank} if train == "lora" else {}
        return super().finetune_options(train, task) | own


@dataclass(frozen=True)
class GaloreSettings(TrainingSettings):
    """GaLore among the methods."""

    galore_rank: int = 128
    """Rank that GaLore projects gradients to."""

    def checks(self) -> list[Check]:
        """Checks of these options."""
        return [*super().checks(), *self.at_least_one("galore_rank")]

    def finetune_options(self, train: str, task: str | None) -> dict[str, Any]:
        """Options of `spectra finetune` for a run, in addition to those that all runs have."""
        own = {"galore-rank": self.galore_rank} if train == "galore" else {}
        return super().finetune_options(train, task) | own


def distinct(field: str, values: tuple[Any, ...]) -> list[Check]:
    """Checks of a list of values."""
    wrong = not values or len(set(values)) < len(values)
    return [(wrong, f"name at least one of {option(field)}, and none twice")]


def known_tasks(*names: str) -> list[Check]:
    """Checks of names of tasks."""
    return [
        (name not in TASKS, f"no task {name!r}; there are: {', '.join(TASKS)}") for name in names
    ]

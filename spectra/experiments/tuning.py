"""What an experiment that finetunes is run with; every field is an option, and is written down."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from spectra.compression.settings import METHODS
from spectra_data.errors import InputError
from spectra_data.tasks import TASKS


@dataclass(frozen=True)
class Tuning:
    """Settings of figures 1, 5 and 8 and of tables 4 and 5."""

    train_data: str | None = None
    """Text to finetune on, of which a part is held out for validation; --data by default."""
    steps: int = 200
    """Optimizer steps of every run. The paper's: 10 000 on text, 500 to 5000 on a task."""
    tuning_batch: int = 4
    """Windows or questions of a step; a pass is of one window, or of all its questions."""
    learning_rate: float = 3e-4
    """Of every run: the same for all methods, as in the paper (5e-5 on text, 1e-4 on tasks)."""
    tuning_err: float = 0.5
    """Of figures 1, 5 and 8."""
    tuning_errs: tuple[float, ...] = (0.3, 0.5, 0.6, 0.7)
    """Of table 4."""
    task_errs: tuple[float, ...] = (0.0, 0.3, 0.4, 0.5)
    """Of table 5; 0 is the dense model."""
    compression: str = "svd"
    """How LRCs are factored: svd is WeLore's; whiten and fisher know activations."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Of table 5."""
    figure8_task: str = "strategyqa"
    """Of figure 8."""
    task_data: str = "data/tasks"
    """Where the tasks' folders lie."""
    questions: int = 64
    """Test questions asked of every task."""
    seeds: tuple[int, ...] = (0,)
    """Every run is repeated with each; what is said of the paper is said of means."""
    lora_rank: int = 16
    """Of LoRA."""
    galore_rank: int = 128
    """Of GaLore."""
    precision: str = "bfloat16"
    """bfloat16 or float32."""

    def __post_init__(self) -> None:
        for name in ("steps", "tuning_batch", "questions", "lora_rank", "galore_rank"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise InputError(f"--{option} is at least 1, not {getattr(self, name)}")
        unknown = [name for name in (*self.tasks, self.figure8_task) if name not in TASKS]
        if unknown:
            raise InputError(f"no task {unknown[0]!r}; there are: {', '.join(TASKS)}")
        if self.compression not in METHODS:
            raise InputError(
                f"no compression {self.compression!r}; there are: {', '.join(METHODS)}"
            )
        if not all(0 < err < 1 for err in (self.tuning_err, *self.tuning_errs)):
            raise InputError("--tuning-err and --tuning-errs are above 0 and below 1")
        if not all(0 <= err < 1 for err in self.task_errs):
            raise InputError("--task-errs are from 0, the dense model, up to 1")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(f"--learning-rate is above 0, not {self.learning_rate}")
        for name in ("seeds", "tasks", "tuning_errs", "task_errs"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                option = name.replace("_", "-")
                raise InputError(f"name one of --{option} at least, and none twice")

    def to_dict(self) -> dict[str, Any]:
        """For the written configuration."""
        return dataclasses.asdict(self)

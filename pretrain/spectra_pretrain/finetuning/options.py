"""The options of finetuning, with the paper's recipes (its tables 8 and 9) as defaults."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from spectra.keywords import Share
from spectra.recording.options import Recording
from spectra_pretrain.options import (
    AUTO,
    BatchOptions,
    EvaluationOptions,
    RunOptions,
    text_checks,
)
from spectra_pretrain.settings import Check
from spectra_pretrain.ways import OptimizerOptions, TrainedOptions


@dataclass(frozen=True)
class TextOptions:
    """Text of continual finetuning."""

    data: str = "pydocs"
    """Corpus: `pydocs` (documentation strings of the installed Python packages),
    `c4`, `hf:NAME`, or a text / jsonl / json / csv / tsv / parquet / arrow file, .gz and .zst
    included, or a folder of these."""
    text_field: str = "text"
    """Field or column that holds the text, of json, csv, tsv, parquet and arrow."""
    tokenizer: str | None = None
    """Tokenizer, by path or hub name; the checkpoint's own by default."""
    validation_fraction: Share = 0.02
    """Share of the text, or of a task's training questions, that is held out for validation."""
    max_tokens: int | None = None
    """Tokens of the corpus to use; by default all, or of a hub's stream as many as are needed."""


@dataclass(frozen=True)
class TaskOptions:
    """Downstream task instead of text; batch, length, steps and learning rate are then those of the
    paper's table 9 by default.
    """

    task: Literal["commonsenseqa", "svamp", "boolq", "coinflip", "date", "strategyqa"] | None = None
    """Task to learn: the model is trained on its answers, and tested at the end."""
    task_data: str = "data/tasks"
    """Folder that contains the tasks' folders, with the published files."""
    questions: int | None = None
    """Number of test questions, from the first on; all by default."""


@dataclass(frozen=True)
class TeacherOptions:
    """Knowledge distillation."""

    teacher: str | None = None
    """Checkpoint whose predictions are learnt, e.g. the model before compression."""
    distill_weight: Share = 0.5
    """Share of the teacher's predictions in the loss; the rest is the text's own next tokens."""
    temperature: float = 2.0
    """Temperature that divides both models' logits before they are compared."""


@dataclass(frozen=True)
class SavingOptions:
    """Result of the run."""

    save: Literal["checkpoint", "adapter"] = "checkpoint"
    """Result to write: a whole (compressed) checkpoint in DIR/model,
    or only what has changed in DIR/adapter."""
    save_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of a whole checkpoint's weights; auto is that of the checkpoint it came from."""


@dataclass(frozen=True)
class FinetuneOptions(RunOptions):
    """Options of a finetuning run; the defaults are the paper's for continual finetuning."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")] = ""
    """Checkpoint to finetune: a compressed one, a Hugging Face folder, or a hub name."""
    steps: int = 10_000
    """Number of optimizer steps."""
    seed: int = 0
    """Seed of everything random: adapters, the order of the data, the sketches, dropout."""
    precision: Literal["auto", "bfloat16", "float32"] = AUTO
    """Precision: bfloat16 is autocast, with frozen weights in bfloat16;
    float32 computes and holds all weights in float32.
    auto is bfloat16 on a device that has instructions for it, else float32."""
    batch: BatchOptions = field(default_factory=lambda: BatchOptions(seq_len=1024, batch_size=1))
    optimizer: OptimizerOptions = field(
        default_factory=lambda: OptimizerOptions(learning_rate=5e-5, warmup=0.05)
    )
    recording: Recording = field(default_factory=Recording)
    evaluation: EvaluationOptions = field(default_factory=lambda: EvaluationOptions(eval_every=500))
    trained: TrainedOptions = field(default_factory=TrainedOptions)
    text: TextOptions = field(default_factory=TextOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    distillation: TeacherOptions = field(default_factory=TeacherOptions)
    saving: SavingOptions = field(default_factory=SavingOptions)

    @property
    def reading(self) -> str:
        """See `RunOptions.reading`."""
        if self.task.task is None:
            return super().reading
        return (
            f"batch {self.batch.batch_size} questions{self.passes} of at most "
            f"{self.batch.seq_len} tokens; {self.steps:,} steps"
        )

    def own_checks(self) -> list[Check]:
        """Checks of further options."""
        distillation, questions = self.distillation, self.task.questions
        return [
            *text_checks(self.text.validation_fraction, self.text.max_tokens),
            (
                questions is not None and questions < 1,
                f"--questions is at least 1, not {questions}",
            ),
            (
                not distillation.temperature > 0,
                f"--temperature is above 0, not {distillation.temperature}",
            ),
            (
                not 0 < distillation.distill_weight <= 1,
                f"--distill-weight is above 0 and at most 1, not {distillation.distill_weight}",
            ),
            *self._idle(),
        ]

    def _idle(self) -> Iterator[Check]:
        """Checks for given options that would have no effect."""
        parts: tuple[tuple[Any, Sequence[str], bool, str], ...] = (
            (
                self.distillation,
                ("distill_weight", "temperature"),
                self.distillation.teacher is not None,
                "--teacher",
            ),
            (self.task, ("task_data", "questions"), self.task.task is not None, "--task"),
            (
                self.text,
                ("data", "text_field", "max_tokens"),
                self.task.task is None,
                "text, not --task",
            ),
            (self.saving, ("save_dtype",), self.saving.save == "checkpoint", "--save checkpoint"),
        )
        for options, names, used, what in parts:
            default = type(options)()
            for name in names:
                given = getattr(options, name) != getattr(default, name)
                yield (
                    given and not used,
                    f"--{name.replace('_', '-')} goes with {what}: leave it out",
                )


TABLE_9 = {
    "commonsenseqa": 5000,
    "svamp": 500,
    "boolq": 2000,
    "coinflip": 500,
    "date": 1000,
    "strategyqa": 1000,
}
"""Training steps; batch 8, length 512 and learning rate 1e-4 are the same for all."""


def recipe(task: str | None) -> FinetuneOptions:
    """The paper's recipe for continual finetuning (table 8) or for a task (table 9)."""
    if task is None:
        return FinetuneOptions()
    return FinetuneOptions(
        steps=TABLE_9.get(task, 1000),
        batch=BatchOptions(seq_len=512, batch_size=8),
        optimizer=OptimizerOptions(learning_rate=1e-4, warmup=0.05),
        evaluation=EvaluationOptions(eval_every=100),
        recording=Recording(every=100),
        task=dataclasses.replace(TaskOptions(), task=task),  # type: ignore[arg-type]
    )

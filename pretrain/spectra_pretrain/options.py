"""The options of training: the command's help, and what a run is repeated from."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from spectra.recording.options import Recording
from spectra_data.errors import InputError
from spectra_data.tokenizer import SMALLEST_VOCABULARY, TRAIN
from spectra_pretrain.optimizers.registry import OPTIMIZERS
from spectra_pretrain.settings import Check, Settings
from spectra_pretrain.ways import SHORT_FORMS, OptimizerOptions, TrainedOptions, settings_of


@dataclass(frozen=True)
class CorpusOptions:
    """What the model is trained on."""

    data: str = "pydocs"
    """`pydocs` (documentation strings of the installed Python packages), a text / jsonl / json.gz /
    parquet file or a folder of them, `c4`, or `hf:NAME`."""
    text_field: str = "text"
    """Field or column that holds the text."""
    tokenizer: str = "train"
    """`train` trains a byte-level BPE on the corpus; else the path or hub name of a tokenizer."""
    vocab_size: int | None = None
    """Size of a trained tokenizer; the model's own vocabulary by default (32 000 for the
    presets)."""
    validation_fraction: float = 0.02
    """Share of the text held out for validation."""
    max_tokens: int | None = None
    """Tokens of the corpus to use; all by default, and of a hub's stream what the run needs."""


@dataclass(frozen=True)
class BatchOptions:
    """What one optimizer step sees."""

    seq_len: int = 256
    """Tokens of a window."""
    batch_size: int = 8
    """Windows of an optimizer step."""
    micro_batch_size: int | None = None
    """Windows of one forward and backward pass; gradients accumulate over the rest of the batch.
    All of the batch by default."""


@dataclass(frozen=True)
class RecorderOptions:
    """The probe batch, and where the recording lies."""

    probe_size: int = 4
    """Validation windows in the probe batch, on which gradients are taken at every snapshot."""
    store: str | None = None
    """Place of the recording: a path, or an address such as s3://bucket/run.zarr; spectra.zarr in
    --out by default."""


@dataclass(frozen=True)
class EvaluationOptions:
    """Loss on the validation part."""

    eval_every: int = 100
    """Steps between evaluations; the last step is always evaluated."""
    eval_tokens: int = 65_536
    """Tokens of an evaluation, or all of the validation part where that is less."""


@dataclass(frozen=True)
class CheckpointOptions:
    """What a killed run goes on from."""

    checkpoint_every: int = 100
    """Steps between checkpoints; the last step always gets one."""
    keep_checkpoints: int = 2
    """Number of the latest checkpoints to keep."""


@dataclass(frozen=True)
class MachineOptions:
    """How it is computed."""

    device: str = "auto"
    """`auto` takes CUDA where there is one, else the CPU; or a torch device."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the model by torch.compile."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "auto"
    """Implementation of attention; auto: as the model chooses, but eager in bfloat16 on a CPU up to
    512 tokens, where it is faster."""


@dataclass(frozen=True)
class RunOptions:
    """What every training run has; the same options, data and seed give the same run."""

    steps: int = 1000
    """Optimizer steps."""
    seed: int = 0
    """Seed of everything that is drawn: initial weights, the order of the data, the sketches."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """bfloat16 is autocast with float32 weights, gradients and optimizer state."""
    batch: BatchOptions = field(default_factory=BatchOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    optimizer_settings: Settings = field(default_factory=Settings)
    """Of the optimizer alone; its defaults where none are given."""
    trained: TrainedOptions = field(default_factory=lambda: TrainedOptions(train="full"))
    layer_settings: Settings = field(default_factory=Settings)
    """Of the parametrization alone; its defaults where none are given."""
    recording: Recording = field(default_factory=lambda: Recording(every=50))
    recorder: RecorderOptions = field(default_factory=RecorderOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)

    def __post_init__(self) -> None:
        self._complete()
        problems = [message for wrong, message in (*self._checks(), *self.own_checks()) if wrong]
        if self.recording.wanted and self.steps > 0:
            try:
                self.recording.schedule(self.steps)
                self.recording.contents()
            except InputError as error:
                problems.append(str(error))
        if problems:
            raise InputError("; ".join(problems))

    def _complete(self) -> None:
        """Write short forms out, and take the settings of what is chosen where none are given."""
        if self.trained.train in SHORT_FORMS:
            train, optimizer = SHORT_FORMS[self.trained.train]
            own = dataclasses.replace(self.optimizer, optimizer=optimizer)
            object.__setattr__(self, "optimizer", own)
            object.__setattr__(self, "trained", dataclasses.replace(self.trained, train=train))
        for name, kind in settings_of(self.optimizer.optimizer, self.trained.train).items():
            if type(getattr(self, name)) is Settings:
                object.__setattr__(self, name, kind())

    @property
    def micro_batch_size(self) -> int:
        return self.batch.micro_batch_size or self.batch.batch_size

    @property
    def tokens_per_step(self) -> int:
        return self.batch.batch_size * self.batch.seq_len

    @property
    def tokens(self) -> int:
        """Tokens that the whole run trains on."""
        return self.steps * self.tokens_per_step

    @property
    def reading(self) -> str:
        """What steps read, in words."""
        batch = self.batch
        return (
            f"batch {batch.batch_size} windows{self.passes} x {batch.seq_len} tokens = "
            f"{self.tokens_per_step:,} tokens a step; {self.steps:,} steps = {self.tokens:,} tokens"
        )

    @property
    def passes(self) -> str:
        """In how many a step is made, in words; empty for one."""
        count = self.batch.batch_size // self.micro_batch_size
        return f" in {count} passes" if count > 1 else ""

    def own_checks(self) -> list[Check]:
        """What further options must hold."""
        return []

    def _checks(self) -> list[Check]:
        batch, micro = self.batch, self.batch.micro_batch_size
        at_least_one = {
            "--steps": self.steps,
            "--batch-size": batch.batch_size,
            "--probe-size": self.recorder.probe_size,
            "--eval-every": self.evaluation.eval_every,
            "--eval-tokens": self.evaluation.eval_tokens,
            "--checkpoint-every": self.checkpoints.checkpoint_every,
            "--keep-checkpoints": self.checkpoints.keep_checkpoints,
            "--record-queue": self.recording.queue,
        }
        not_negative = {
            "--record-every": self.recording.rhythm or 0,
            "--record-subspaces": self.recording.subspaces,
            "--sketch": self.recording.sketch,
            "--clip": self.optimizer.clip,
            "--weight-decay": self.optimizer.weight_decay,
            "--seed": self.seed,
        }
        shares = {
            "--warmup": self.optimizer.warmup,
            "--min-lr-ratio": self.optimizer.min_lr_ratio,
            "--beta1": self.optimizer.beta1,
            "--beta2": self.optimizer.beta2,
        }
        finite = {
            "--learning-rate": self.optimizer.learning_rate,
            "--clip": self.optimizer.clip,
            "--weight-decay": self.optimizer.weight_decay,
        }
        overhead = self.recording.overhead
        return [
            *self._checks_of_training(),
            *((v < 1, f"{name} is at least 1, not {v}") for name, v in at_least_one.items()),
            *((v < 0, f"{name} is at least 0, not {v}") for name, v in not_negative.items()),
            *((not 0 <= v <= 1, f"{name} is from 0 to 1, not {v}") for name, v in shares.items()),
            *((not math.isfinite(v), f"{name} is a number, not {v}") for name, v in finite.items()),
            (self.seed >= 1 << 63, f"--seed is below 2^63, not {self.seed}"),
            (
                self.optimizer.beta1 == 1 or self.optimizer.beta2 == 1,
                "--beta1 and --beta2 are below 1",
            ),
            (
                overhead is not None and not 0 < overhead < 1,
                f"--record-overhead is a share between 0 and 1, not {overhead}",
            ),
            (batch.seq_len < 2, f"--seq-len is at least 2, not {batch.seq_len}"),
            (self.optimizer.learning_rate <= 0, "--learning-rate is above 0"),
            (
                micro is not None and (micro < 1 or batch.batch_size % micro != 0),
                f"--micro-batch-size {micro} does not divide --batch-size {batch.batch_size}",
            ),
        ]

    def _checks_of_training(self) -> list[Check]:
        """What the choices of what is trained, and how, must hold together."""
        masters, name = self.trained.masters, self.optimizer.optimizer
        own = settings_of(name, self.trained.train)
        known = name in OPTIMIZERS
        plain = masters == "float32" or not known or masters in OPTIMIZERS[name].masters
        return [
            (not known, f"no --optimizer {name}; there are: {', '.join(OPTIMIZERS)}"),
            *self.trained.checks(),
            *(
                (
                    not isinstance(getattr(self, field), kind),
                    f"{type(getattr(self, field)).__name__} are options of another choice than "
                    f"{name} and {self.trained.train}",
                )
                for field, kind in own.items()
            ),
            *self.optimizer_settings.checks(),
            *self.layer_settings.checks(),
            (
                masters == "bfloat16" and self.precision == "float32",
                "--masters bfloat16 goes with --precision bfloat16",
            ),
            (not plain, f"{name} has float32 masters: leave out --masters {masters}"),
        ]


@dataclass(frozen=True)
class PretrainOptions(RunOptions):
    """A pretraining run."""

    model: str = "llama_9m"
    """Model to train: a preset (llama_9m, _20m, _35m, _60m, _71m, _100m, _130m, _250m, _350m, _1b,
    _3b, _7b) or a Hugging Face config.json."""
    corpus: CorpusOptions = field(default_factory=CorpusOptions)

    def own_checks(self) -> list[Check]:
        """What corpus and tokenizer must hold."""
        size, trained = self.corpus.vocab_size, self.corpus.tokenizer == TRAIN
        return [
            *text_checks(self.corpus.validation_fraction, self.corpus.max_tokens),
            (
                size is not None and trained and size < SMALLEST_VOCABULARY,
                f"a byte-level vocabulary has at least {SMALLEST_VOCABULARY} tokens, not {size}",
            ),
            (
                size is not None and not trained,
                "--vocab-size goes with --tokenizer train: one that is loaded has its own",
            ),
        ]


def text_checks(validation_fraction: float, max_tokens: int | None) -> list[Check]:
    """What options of a text must hold."""
    return [
        (
            not 0 < validation_fraction < 1,
            f"--validation-fraction is between 0 and 1, not {validation_fraction}",
        ),
        (
            max_tokens is not None and max_tokens < 1,
            f"--max-tokens is at least 1, not {max_tokens}",
        ),
    ]

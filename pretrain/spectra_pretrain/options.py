"""The options of training: they are the command's help, and a run is repeated from them."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Final, Literal, Self

from spectra.keywords import Share
from spectra.recording.options import Recording
from spectra_data.errors import InputError
from spectra_data.tokenizer import SMALLEST_VOCABULARY, TRAIN
from spectra_pretrain.optimizers.registry import OPTIMIZERS
from spectra_pretrain.settings import Check, Settings
from spectra_pretrain.ways import SHORT_FORMS, OptimizerOptions, TrainedOptions, settings_of

MOST = 10**12
"""Largest number of steps, tokens or windows; no run gets that far."""
AUTO: Final = "auto"
"""Value of an option that is chosen when a run starts; its files hold what was chosen."""
OWN: Final = "model"
"""Value of an option: the size of the model's own vocabulary."""


@dataclass(frozen=True)
class CorpusOptions:
    """Corpus to train on, and its tokenizer."""

    data: str = "pydocs"
    """Corpus: `pydocs` (documentation strings of the installed Python packages),
    `c4`, `hf:NAME`, or a text / jsonl / json / csv / tsv / parquet / arrow file, .gz and .zst
    included, or a folder of these."""
    text_field: str = "text"
    """Field or column that holds the text, of json, csv, tsv, parquet and arrow."""
    tokenizer: str = "train"
    """Tokenizer: a path, a hub name, or `train` to train a byte-level BPE on the corpus."""
    vocab_size: int | Literal["auto", "model"] = AUTO
    """Vocabulary of a trained tokenizer, in tokens; `model` is the model's own (32 000 in presets).
    auto is one token for every 2000 characters of text, at most the model's own; a vocabulary
    smaller than that never weighs more than the blocks."""
    validation_fraction: Share = 0.02
    """Share of the text that is held out for validation."""
    max_tokens: int | None = None
    """Tokens of the corpus to use; by default all, or of a hub's stream as many as are needed."""


@dataclass(frozen=True)
class BatchOptions:
    """Batch of an optimizer step."""

    seq_len: int = 256
    """Tokens per window."""
    batch_size: int = 8
    """Windows per optimizer step."""
    micro_batch_size: int | None = None
    """Windows per forward and backward pass; gradients accumulate over the batch.
    By default, the whole batch in one pass."""


@dataclass(frozen=True)
class RecorderOptions:
    """Probe batch, and address of the recording."""

    probe_size: int = 4
    """Validation windows in the probe batch, on which gradients are taken at every snapshot."""
    store: str | None = None
    """Address of the recording: a path, or a URL such as s3://bucket/run.zarr.
    By default, spectra.zarr in --out."""


@dataclass(frozen=True)
class EvaluationOptions:
    """Evaluations of the loss on the validation part."""

    eval_every: int = 100
    """Steps between evaluations; the last step is always evaluated."""
    eval_tokens: int = 65_536
    """Tokens per evaluation, at most all of the validation part."""


@dataclass(frozen=True)
class CheckpointOptions:
    """Checkpoints, from which a run resumes."""

    checkpoint_every: int = 100
    """Steps between checkpoints; the last step always gets one."""
    keep_checkpoints: int = 2
    """Number of the latest checkpoints to keep."""


@dataclass(frozen=True)
class MachineOptions:
    """Device and implementation."""

    device: str = "auto"
    """Device to train on: a torch device, or `auto` for CUDA if available, else the CPU."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the model with torch.compile."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "auto"
    """Implementation of attention; auto is the model's own choice,
    but eager in bfloat16 on a CPU up to 512 tokens, where that is faster."""


@dataclass(frozen=True)
class RunOptions:
    """Options of every training run; the same options, data and seed yield the same run."""

    steps: int = 1000
    """Number of optimizer steps."""
    seed: int = 0
    """Seed of everything random: initial weights, the order of the data, the sketches."""
    precision: Literal["auto", "bfloat16", "float32"] = AUTO
    """Precision: bfloat16 is autocast with float32 weights, gradients and optimizer state.
    auto is bfloat16 on a device that has instructions for it, else float32."""
    batch: BatchOptions = field(default_factory=BatchOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    optimizer_settings: Settings = field(default_factory=Settings)
    """Options of the chosen optimizer alone; its defaults unless given."""
    trained: TrainedOptions = field(default_factory=lambda: TrainedOptions(train="full"))
    layer_settings: Settings = field(default_factory=Settings)
    """Options of the chosen parametrization alone; its defaults unless given."""
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
        """Expand short forms, and fill in the default settings of the choices."""
        if self.trained.train in SHORT_FORMS:
            train, optimizer = SHORT_FORMS[self.trained.train]
            own = dataclasses.replace(self.optimizer, optimizer=optimizer)
            object.__setattr__(self, "optimizer", own)
            object.__setattr__(self, "trained", dataclasses.replace(self.trained, train=train))
        for name, kind in settings_of(self.optimizer.optimizer, self.trained.train).items():
            if type(getattr(self, name)) is Settings:
                object.__setattr__(self, name, kind())

    def settled(self, recorded: Self) -> Self:
        """Options in which `auto` is what a recorded run chose."""
        if self.precision != AUTO:
            return self
        return dataclasses.replace(self, precision=recorded.precision)

    @property
    def reduced(self) -> bool:
        """Whether products are computed in bfloat16; `auto` must be resolved before."""
        assert self.precision != AUTO, "see spectra_pretrain.machine.chosen"
        return self.precision == "bfloat16"

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
        """Batch, steps and tokens, in words."""
        batch = self.batch
        return (
            f"batch {batch.batch_size} windows{self.passes} x {batch.seq_len} tokens = "
            f"{self.tokens_per_step:,} tokens a step; {self.steps:,} steps = {self.tokens:,} tokens"
        )

    @property
    def passes(self) -> str:
        """Number of passes per step, in words; empty for one."""
        count = self.batch.batch_size // self.micro_batch_size
        return f" in {count} passes" if count > 1 else ""

    def own_checks(self) -> list[Check]:
        """Checks of further options."""
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
            *((v > MOST, f"{name} is at most {MOST}, not {v}") for name, v in at_least_one.items()),
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
        """Checks of what is trained together with the optimizer and the precision."""
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
                    f"{type(getattr(self, field)).__name__} are not options of {name} or "
                    f"{self.trained.train}",
                )
                for field, kind in own.items()
            ),
            *self.optimizer_settings.checks(),
            *self.layer_settings.checks(),
            (
                masters == "bfloat16" and self.precision == "float32",
                "--masters bfloat16 goes with --precision bfloat16",
            ),
            (not plain, f"{name} updates only float32 masters: leave out --masters {masters}"),
        ]


@dataclass(frozen=True)
class PretrainOptions(RunOptions):
    """Options of a pretraining run."""

    model: str = "llama_9m"
    """Model to train: a Hugging Face config.json, or one of the presets
    llama_9m, _20m, _35m, _60m, _71m, _100m, _130m, _250m, _350m, _1b, _3b, _7b."""
    corpus: CorpusOptions = field(default_factory=CorpusOptions)

    def settled(self, recorded: Self) -> Self:
        """Options in which `auto` is what a recorded run chose."""
        return super().settled(recorded).with_fitted_vocabulary(recorded.corpus.vocab_size)

    def with_fitted_vocabulary(self, size: int | Literal["auto", "model"]) -> Self:
        """Options with the size that was chosen for a trained tokenizer, if they leave it open."""
        corpus = self.corpus
        if corpus.tokenizer != TRAIN or corpus.vocab_size != AUTO:
            return self
        return dataclasses.replace(self, corpus=dataclasses.replace(corpus, vocab_size=size))

    def own_checks(self) -> list[Check]:
        """Checks of corpus and tokenizer."""
        size, trained = self.corpus.vocab_size, self.corpus.tokenizer == TRAIN
        return [
            *text_checks(self.corpus.validation_fraction, self.corpus.max_tokens),
            (
                isinstance(size, int) and trained and size < SMALLEST_VOCABULARY,
                f"a byte-level vocabulary has at least {SMALLEST_VOCABULARY} tokens, not {size}",
            ),
            (
                size != AUTO and not trained,
                "--vocab-size goes with --tokenizer train: a loaded tokenizer has its own",
            ),
        ]


def text_checks(validation_fraction: float, max_tokens: int | None) -> list[Check]:
    """Checks of the options of a text."""
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

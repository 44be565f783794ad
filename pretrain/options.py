"""Every option of pretraining: the command's help, and the file to repeat a run from."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from data.errors import InputError
from data.tokenizer import SMALLEST_VOCABULARY, TRAIN

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


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
class OptimizerOptions:
    """AdamW, with warm-up and cosine decay."""

    learning_rate: float = 1e-3
    """At its peak."""
    min_lr_ratio: float = 0.1
    """Last learning rate over the peak."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""


@dataclass(frozen=True)
class RecorderOptions:
    """What is recorded, and how often."""

    record_every: int = 50
    """Steps between snapshots; 0 records nothing."""
    probe_size: int = 8
    """Validation windows in the probe batch, on which gradients are taken at every snapshot."""
    sketch: int = 4096
    """Components of a gradient sketch (cosines to about 1/sqrt of it); 0 for none."""


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
    """How many of the latest to keep."""


@dataclass(frozen=True)
class MachineOptions:
    """How it is computed."""

    device: str = "auto"
    """`auto` takes CUDA where there is one, else the CPU; or a torch device."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the model by torch.compile."""


@dataclass(frozen=True)
class PretrainOptions:
    """A pretraining run; the same options, corpus and seed give the same run."""

    model: str = "llama_9m"
    """A preset (llama_9m, _20m, _35m, _60m, _71m, _100m, _130m, _250m, _350m, _1b, _3b, _7b) or a
    Hugging Face config.json."""
    steps: int = 1000
    """Optimizer steps."""
    seed: int = 0
    """Of the initial weights, the order of the data and the sketches."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """bfloat16 is autocast with float32 weights, gradients and optimizer state."""
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    recorder: RecorderOptions = field(default_factory=RecorderOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)

    def __post_init__(self) -> None:
        problems = [message for wrong, message in self._checks() if wrong]
        if problems:
            raise InputError("; ".join(problems))

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

    def _checks(self) -> list[tuple[bool, str]]:
        batch, micro = self.batch, self.batch.micro_batch_size
        at_least_one = {
            "--steps": self.steps,
            "--batch-size": batch.batch_size,
            "--probe-size": self.recorder.probe_size,
            "--eval-every": self.evaluation.eval_every,
            "--eval-tokens": self.evaluation.eval_tokens,
            "--checkpoint-every": self.checkpoints.checkpoint_every,
            "--keep-checkpoints": self.checkpoints.keep_checkpoints,
        }
        not_negative = {
            "--record-every": self.recorder.record_every,
            "--sketch": self.recorder.sketch,
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
        size, trained = self.corpus.vocab_size, self.corpus.tokenizer == TRAIN
        fraction = self.corpus.validation_fraction
        return [
            *((v < 1, f"{name} is at least 1, not {v}") for name, v in at_least_one.items()),
            *((v < 0, f"{name} is at least 0, not {v}") for name, v in not_negative.items()),
            *((not 0 <= v <= 1, f"{name} is from 0 to 1, not {v}") for name, v in shares.items()),
            (
                size is not None and trained and size < SMALLEST_VOCABULARY,
                f"a byte-level vocabulary has at least {SMALLEST_VOCABULARY} tokens, not {size}",
            ),
            (
                size is not None and not trained,
                "--vocab-size goes with --tokenizer train: one that is loaded has its own",
            ),
            *((not math.isfinite(v), f"{name} is a number, not {v}") for name, v in finite.items()),
            (self.seed >= 1 << 63, f"--seed is below 2^63, not {self.seed}"),
            (
                self.corpus.max_tokens is not None and self.corpus.max_tokens < 1,
                f"--max-tokens is at least 1, not {self.corpus.max_tokens}",
            ),
            (
                self.optimizer.beta1 == 1 or self.optimizer.beta2 == 1,
                "--beta1 and --beta2 are below 1",
            ),
            (batch.seq_len < 2, f"--seq-len is at least 2, not {batch.seq_len}"),
            (self.optimizer.learning_rate <= 0, "--learning-rate is above 0"),
            (not 0 < fraction < 1, f"--validation-fraction is between 0 and 1, not {fraction}"),
            (
                micro is not None and (micro < 1 or batch.batch_size % micro != 0),
                f"--micro-batch-size {micro} does not divide --batch-size {batch.batch_size}",
            ),
        ]


MAY_CHANGE = {"machine", "checkpoints"}
"""Groups whose options may differ when a run is resumed: they do not decide what it computes."""

Options = TypeVar("Options", bound="DataclassInstance")


def to_dict(options: PretrainOptions) -> dict[str, Any]:
    """Options as one flat dictionary, by the names they have on the command line."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        flat |= _fields(f.name, value)
    return flat


def from_dict(flat: dict[str, Any], source: str) -> PretrainOptions:
    """Options from `to_dict`'s dictionary; options that it lacks keep their defaults.

    Raises
    ------
    InputError
        Naming `source`, when a name is unknown or a value is not of its option's type.
    """
    remaining = dict(flat)
    built = _build(PretrainOptions, remaining, source)
    if remaining:
        raise InputError(f"{source} has unknown options: {', '.join(sorted(remaining))}")
    return built


def read_options(path: Path) -> PretrainOptions:
    """Options from a file that a run wrote (pretrain.json in its folder)."""
    try:
        flat = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(flat, dict):
        raise InputError(f"{path} is no file of options: it holds no JSON object")
    return from_dict(flat, str(path))


def differences(one: PretrainOptions, other: PretrainOptions) -> list[str]:
    """Options that must not change on resuming and do, as ``--steps 300 (was 200)``."""
    changed = []
    for f in dataclasses.fields(PretrainOptions):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if f.name in MAY_CHANGE or a == b:
            continue
        old, new = _fields(f.name, a), _fields(f.name, b)
        changed += [
            f"--{name.replace('_', '-')} {new[name]} (was {old[name]})"
            for name in old
            if old[name] != new[name]
        ]
    return changed


def _fields(name: str, value: Any) -> dict[str, Any]:
    """The options of a group, or the one option that is none."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return {name: value}


def _build(kind: type[Options], remaining: dict[str, Any], source: str) -> Options:
    values: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            values[f.name] = _build(f.type, remaining, source)
        elif f.name in remaining:
            values[f.name] = _typed(f.name, remaining.pop(f.name), f.type, source)
    return kind(**values)


def _typed(name: str, value: Any, kind: Any, source: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    allowed = getattr(kind, "__args__", (kind,))  # of a union or a Literal, its members
    fits = any(type(value) is a if isinstance(a, type) else value == a for a in allowed)
    if not fits:
        raise InputError(f"{source}: {name} cannot be {value!r}")
    return value

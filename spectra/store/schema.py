"""The vocabulary of a store: schema, arrays, metrics, and why a value can be missing.

A row of `spectra`, `sketches`, `gradients` and `subspaces` is a snapshot, and exists once
``spectra/step`` holds its step; a row of `train` is a training step, and exists once
``train/train_step`` holds it. Both are written after everything else in their row.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

SCHEMA = "spectra/1"
UNSET = -1
TRAIN = {
    "loss": ("training loss, before the step", "nat"),
    "validation_loss": ("loss on the validation part, after the step, where evaluated", "nat"),
    "learning_rate": ("learning rate of the step", "1"),
    "gradient_norm": ("norm of the whole gradient, before clipping", "1"),
    "clip_factor": ("factor by which clipping scaled the gradient", "1"),
    "tokens": ("tokens seen, this step included", "token"),
    "tokens_per_second": ("training speed since the row before, recording included", "token/s"),
}


class Status(IntEnum):
    """Why a part of a snapshot is there or missing, by matrix, in ``status/code``."""

    MEASURED = 0
    INDEPENDENT = 1
    """The loss does not depend on this matrix."""
    FROZEN = 2
    """The matrix is not trained."""
    NO_GRADIENT = 3
    """It is trained, but had no gradient when the optimizer stepped."""
    NOT_FINITE = 4
    FIRST_STATE = 5
    """No step led to the state that the recording starts from."""
    SPARED = 6
    """Left out to stay within the overhead allowed."""
    NOT_OPTIMIZED = 7
    """It is trained, but not by the optimizer that is recorded."""
    IN_CLOSURE = 8
    """The optimizer computed it inside its step, from a closure."""
    OUT_OF_RANGE = 9
    """It is finite, but the store's numbers are too small or too large for it."""
    UNSET = 255

    @property
    def reason(self) -> str:
        return REASONS[self]


REASONS = {
    Status.MEASURED: "measured",
    Status.INDEPENDENT: "the loss does not depend on this matrix",
    Status.FROZEN: "the matrix is not trained",
    Status.NO_GRADIENT: "it had no gradient when the optimizer stepped",
    Status.NOT_FINITE: "it was not finite",
    Status.FIRST_STATE: "no recorded step led to this state",
    Status.SPARED: "left out to stay within the overhead allowed",
    Status.NOT_OPTIMIZED: "the recorded optimizer does not update it",
    Status.IN_CLOSURE: "the optimizer computed it inside of its step, from a closure",
    Status.OUT_OF_RANGE: "it is too large or too small for the store's numbers",
    Status.UNSET: "not recorded",
}
FLAGS = {
    "flag_values": [int(status) for status in Status],
    "flag_meanings": " ".join(status.name.lower() for status in Status),
    "reasons": {status.name.lower(): status.reason for status in Status},
}
"""Attributes of ``status/code`` (the first two as in the CF conventions, section 3.5)."""
BFLOAT16_NAN = 0x7FC0


def out_of_range(largest: float, dtype: npt.DTypeLike) -> bool:
    """Whether numbers up to one do not fit a dtype: they overflow, or lose digits.

    Parameters
    ----------
    largest
        The largest magnitude; smaller ones matter in proportion to it.
    dtype
        float32 or float64; bfloat16 has float32's range.
    """
    limits = np.finfo(dtype)
    return largest > float(limits.max) or 0 < largest < float(limits.tiny)


@dataclass(frozen=True)
class Variable:
    """One array of a store."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    fill: float | int | str
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        width = 32 if self.dtype == "string" else np.dtype(self.dtype).itemsize
        return int(np.prod(self.shape, dtype=np.int64)) * width

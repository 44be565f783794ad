"""The common interface of weight files: named tensors, read one at a time."""

from dataclasses import dataclass
from typing import Protocol

import torch

from spectra_data.errors import InputError

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""Stored formats with one number per entry."""
INTEGERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Formats that are read unchanged: only the quantiser that wrote them knows what they mean."""
NAMES = {dtype: name for name, dtype in (FLOATS | INTEGERS).items()}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
MODEL_KEYS = ("state_dict", "model", "module", "model_state_dict")
"""Keys under which trainers put a model's tensors, next to their other states."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint, not yet read."""

    name: str
    shape: tuple[int, ...]
    format: str
    """Format in the words of the file: BF16, F8_E4M3, Q4_1, I32, …"""
    file: str
    problem: str | None = None
    """Reason why it cannot be read."""

    @property
    def readable_as(self) -> torch.dtype | None:
        """Floating dtype in which it is read; None if an entry is not a number by itself."""
        return FLOATS.get(self.format)

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype in which it is read; None for unknown formats."""
        return FLOATS.get(self.format) or INTEGERS.get(self.format)

    @property
    def width(self) -> int:
        """Bytes of an entry when it is read; those of float32 for unknown formats."""
        return 4 if self.dtype is None else self.dtype.itemsize


class TensorFile(Protocol):
    """A weight file of a checkpoint."""

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors of the file by name, readable or not."""
        ...

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """A tensor, or one entry along its first dimension.

        Raises
        ------
        InputError
            When the file does not hold all of it.
        """
        ...


def require_readable(tensor: StoredTensor, first: int | None = None) -> None:
    """Require that a tensor can be read.

    Raises
    ------
    InputError
        With the reason why it cannot.
    """
    if tensor.problem:
        raise InputError(tensor.problem)
    if tensor.dtype is None:
        raise InputError(
            f"{tensor.file}: {tensor.name} is stored as {tensor.format}, which cannot be read"
        )
    if first is not None and not 0 <= first < tensor.shape[0]:
        raise InputError(f"{tensor.file}: {tensor.name} has no entry {first}")

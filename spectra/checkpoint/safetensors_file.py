"""A safetensors file, read in ranges: the library of the format maps whole, local files only."""

import math
from typing import Any

import torch

from spectra.checkpoint.folder import RangedFile
from spectra.checkpoint.tensors import FLOATS, INTEGERS, StoredTensor, require_readable
from spectra.matrices import LARGEST_SIDE
from spectra_data.errors import InputError
from spectra_data.reading import parse_json

LARGEST_HEADER = 100_000_000
"""Largest header in bytes, the limit of the format's own library."""


class SafetensorsFile:
    """The tensors of one file; those beyond the end of a truncated file have a problem."""

    def __init__(self, file: RangedFile) -> None:
        self._file = file
        self._ranges: dict[str, tuple[int, int]] = {}
        self.tensors: dict[str, StoredTensor] = {}
        for name, entry in self._header().items():
            if name != "__metadata__":
                self._add(name, entry)

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """See `TensorFile`."""
        tensor = self.tensors[name]
        require_readable(tensor, first)
        dtype = tensor.dtype
        assert dtype is not None
        start, end = self._ranges[name]
        shape = tensor.shape
        if first is not None:
            size, shape = (end - start) // shape[0], shape[1:]
            start, end = start + first * size, start + (first + 1) * size
        return self._file.read(start, end - start).view(dtype).reshape(shape)

    def _header(self) -> dict[str, Any]:
        name, size = self._file.name, self._file.size
        if size < 8:
            raise InputError(f"{name} is truncated: it has {size} bytes, too few for a header")
        length = int.from_bytes(bytes(self._file.read(0, 8).numpy()), "little")
        if length > LARGEST_HEADER:
            raise InputError(f"{name} is not a safetensors file: its header has {length} bytes")
        if 8 + length > size:
            raise InputError(f"{name} is truncated: it ends inside its header")
        header = parse_json(
            bytes(self._file.read(8, length).numpy()),
            f"{name} is not a safetensors file: its header",
        )
        if not isinstance(header, dict):
            raise InputError(f"{name} is not a safetensors file: its header is not a JSON object")
        self._data = 8 + length
        return header

    def _add(self, name: str, entry: Any) -> None:
        file = self._file
        try:
            shape = tuple(int(side) for side in entry["shape"])
            start, end = (self._data + int(offset) for offset in entry["data_offsets"])
            stored = str(entry["dtype"])
            if not all(0 <= side < LARGEST_SIDE for side in shape):
                raise ValueError("a side is negative, or too large for any matrix")
            if not self._data <= start <= end:
                raise ValueError("negative offsets")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{file.name}: the header's entry of {name} is malformed") from error
        problem = None
        dtype = FLOATS.get(stored) or INTEGERS.get(stored)
        if dtype is not None and end - start != math.prod(shape) * dtype.itemsize:
            problem = f"{file.name}: {name} has {end - start} bytes, not those of {shape}"
        elif end > file.size:
            problem = (
                f"{file.name} is truncated: {name} ends at byte {end}, the file at {file.size}"
            )
        self._ranges[name] = start, end
        self.tensors[name] = StoredTensor(name, shape, stored, file.name, problem)

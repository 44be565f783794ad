"""A file of torch's own format, tensors only, read in ranges.

Nothing in it is ever executed (``weights_only``). The file's table of contents, with the offset of
each tensor, is read without the tensors; files from before torch 1.6 lack it and are read whole.
"""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from spectra.checkpoint.folder import RangedFile
from spectra.checkpoint.tensors import MODEL_KEYS, NAMES, StoredTensor
from spectra_data.errors import InputError
from spectra_data.reading import reading

LARGEST_PICKLE = 100_000_000
"""Bytes of the largest table of contents, as of the header of safetensors."""


@dataclass(frozen=True)
class _Place:
    offset: int
    stride: tuple[int, ...]
    dtype: torch.dtype


class TorchFile:
    """The tensors of one file."""

    def __init__(self, file: RangedFile) -> None:
        self._file = file
        self._places: dict[str, _Place] = {}
        self._whole: dict[str, torch.Tensor] | None = None
        self.tensors: dict[str, StoredTensor] = {}
        self.wrapped = False
        """Whether the tensors are nested in something else, e.g. a trainer's state."""
        self._archive = self._is_archive()
        with FakeTensorMode():
            found = self._load()
        for name, tensor in found.items():
            stored = NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
            shape = tuple(tensor.shape)
            problem = self._unreadable(name, tensor)
            if problem is not None:
                self.tensors[name] = StoredTensor(name, shape, stored, file.name, problem)
                continue
            offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
            if offset is not None:
                start = offset + tensor.storage_offset() * tensor.dtype.itemsize
                self._places[name] = _Place(start, tensor.stride(), tensor.dtype)
                problem = self._beyond(name, self._places[name], shape)
            self.tensors[name] = StoredTensor(name, shape, stored, file.name, problem)

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """See `TensorFile`."""
        located, shape = self._places.get(name), self.tensors[name].shape
        if located is None:
            if self._whole is None:
                self._whole = self._load()
            whole = self._whole[name]
            if whole.is_meta:
                raise InputError(f"{self._file.name}: {name} is a tensor without values")
            return whole if first is None else whole[first]
        offset, stride = located.offset, located.stride
        if first is not None:
            offset += first * stride[0] * located.dtype.itemsize
            shape, stride = shape[1:], stride[1:]
        count = _extent(shape, stride)
        values = self._file.read(offset, count * located.dtype.itemsize).view(located.dtype)
        return values.as_strided(shape, stride)

    def _beyond(self, name: str, located: _Place, shape: tuple[int, ...]) -> str | None:
        end = located.offset + _extent(shape, located.stride) * located.dtype.itemsize
        if end <= self._file.size:
            return None
        return f"{self._file.name} is truncated: {name} ends at byte {end}"

    def _unreadable(self, name: str, tensor: torch.Tensor) -> str | None:
        """Reason why a tensor has no values that can be read as they are; None if it has them."""
        if tensor.layout != torch.strided:
            kind = f"{str(tensor.layout).removeprefix('torch.')} tensor"
        elif tensor.is_quantized:
            kind = "quantized tensor"
        elif tensor.device.type == "meta" and self._archive:
            kind = "tensor without values"
        else:
            return None
        return f"{self._file.name}: {name} is a {kind}: save it as a dense one"

    def _is_archive(self) -> bool:
        """Whether it is an archive; False for files from before torch 1.6, and damaged ones.

        Raises
        ------
        InputError
            When torch did not write it: it is compressed, or its table of contents is too long.
        """
        name = self._file.name
        self._file.stream.seek(0)
        with reading(name):
            try:
                entries = zipfile.ZipFile(self._file.stream).infolist()
            except zipfile.BadZipFile:
                return False
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise InputError(f"{name} is compressed, unlike torch's files: save it with torch.save")
        for entry in entries:
            if entry.filename.endswith("/data.pkl") and entry.file_size > LARGEST_PICKLE:
                raise InputError(
                    f"{name} is damaged: its table of contents has {entry.file_size} bytes"
                )
        return True

    def _load(self) -> dict[str, torch.Tensor]:
        self._file.stream.seek(0)
        name = self._file.name
        try:
            with reading(name):
                loaded: Any = torch.load(self._file.stream, map_location="cpu", weights_only=True)
        except InputError as error:
            if isinstance(error.__cause__, pickle.UnpicklingError):
                raise InputError(
                    f"{name} holds more than tensors and is not unpickled: "
                    "save its weights as safetensors"
                ) from error
            if isinstance(error.__cause__, NotImplementedError):
                raise InputError(
                    f"{name} holds tensors of a kind that is not read, such as quantized ones: "
                    "save them as dense tensors"
                ) from error
            # a truncated file fails in many ways, by the place where it ends
            if self._file.local and isinstance(
                error.__cause__, OSError | EOFError | RuntimeError | ValueError
            ):
                raise InputError(f"{name} is truncated, or not a file of torch") from error
            raise
        seen: set[int] = set()
        while isinstance(loaded, Mapping):
            inner = [key for key in MODEL_KEYS if isinstance(loaded.get(key), Mapping)]
            if not inner or id(loaded) in seen:
                break
            seen.add(id(loaded))
            loaded = loaded[inner[0]]
            self.wrapped = True
        if not isinstance(loaded, Mapping):
            raise InputError(f"{name} holds no named tensors")
        return {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Entries from the first to the last, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))

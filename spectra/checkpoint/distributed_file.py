"""A checkpoint of torch.distributed: ``.metadata`` and the ``.distcp`` files that it describes.

No process group is needed. A tensor, or one entry of a stack, is read by torch's own reader from
the ranges of the files that hold its pieces. ``.metadata`` is a pickle: only the classes that
torch puts into it are built, and nothing else in it is called.
"""

import collections
import math
import pathlib
import pickle
import re
from typing import Any

import torch
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from spectra.checkpoint.folder import RangedFile
from spectra.checkpoint.formats import PIECE
from spectra.checkpoint.tensors import MODEL_KEYS, NAMES, StoredTensor, require_readable
from spectra_data.errors import InputError
from spectra_data.reading import reading

LARGEST_METADATA = 100_000_000
"""Bytes of the largest table of contents, as of the other formats."""
OTHER_STATE = re.compile(
    r"optim|(lr_)?scheduler|train_state|dataloader|rng|loss_scaler|grad_scaler", re.IGNORECASE
)
"""Beginnings of the names that trainers give to what they save next to the weights."""
_CLASSES: dict[tuple[str, str], Any] = {
    (kind.__module__, kind.__qualname__): kind
    for kind in (
        metadata.Metadata,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.TensorProperties,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        metadata._MEM_FORMAT_ENCODING,
        _StorageInfo,
        torch.Size,
        collections.OrderedDict,
    )
} | {
    ("torch.serialization", "_get_layout"): lambda name: torch.strided,
    ("pathlib", "PosixPath"): pathlib.PurePosixPath,
    ("pathlib", "WindowsPath"): pathlib.PureWindowsPath,
}


class DistributedFile:
    """The tensors that one ``.metadata`` describes; those of missing files have a problem."""

    def __init__(self, file: RangedFile) -> None:
        if file.local is None:
            raise InputError(f"{file.name} is not on this machine: download its folder")
        self._folder = file.local.parent
        self._index = file.name
        held = _metadata(file)
        with reading(file.name):
            self._reader = FileSystemReader(self._folder)
            self._reader.set_up_storage_reader(held, is_coordinator=True)
            self._keys, self.wrapped = _names(held)
            self._held: dict[str, Any] = {
                name: held.state_dict_metadata[key] for name, key in self._keys.items()
            }
            sizes = {p.name: p.stat().st_size for p in self._folder.glob(f"*{PIECE}")}
            self._lost = self._missing(sizes)
            self.tensors = {name: self._stored(name, sizes) for name in self._keys}
            used = {place.relative_path for place in held.storage_data.values()}
            self.parts = sorted(sizes.keys() & used)
            """Names of the files that hold its tensors."""
        if not self.tensors:
            raise InputError(f"{file.name} lists no tensors")

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """See `TensorFile`."""
        tensor = self.tensors[name]
        require_readable(tensor, first)
        offsets, shape = [0] * len(tensor.shape), list(tensor.shape)
        if first is not None:
            offsets[0], shape[0] = first, 1
        chunk = metadata.ChunkStorageMetadata(torch.Size(offsets), torch.Size(shape))
        items = create_read_items_for_chunk_list(self._keys[name], self._held[name], [chunk])
        target = torch.empty(shape, dtype=tensor.dtype)
        if target.is_floating_point():  # an entry that no piece fills must show
            target.fill_(torch.nan)
        with reading(f"{self._index}: {name}"):
            self._reader.read_data(LoadPlan(items), _Into(target)).wait()
        return target if first is None else target[0]

    def _stored(self, name: str, sizes: dict[str, int]) -> StoredTensor:
        held = self._held[name]
        shape, dtype = tuple(map(int, held.size)), held.properties.dtype
        stored = NAMES.get(dtype, str(dtype).removeprefix("torch."))
        problem = self._problem(name, sizes)
        return StoredTensor(name, shape, stored, self._index, problem)

    def _missing(self, sizes: dict[str, int]) -> dict[str, str]:
        """A line for every file that is missing: what it holds."""
        known = {key: name for name, key in self._keys.items()}
        lost: dict[str, list[str]] = {}
        for index, place in self._reader.storage_data.items():
            if place.relative_path not in sizes and index.fqn in known:
                lost.setdefault(place.relative_path, []).append(known[index.fqn])
        return {
            file: f"{file} is missing, with {names[0]}"
            + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for file, names in lost.items()
        }

    def _problem(self, name: str, sizes: dict[str, int]) -> str | None:
        """Why a tensor cannot be read: a file or piece of it is missing or short; else None."""
        held, entries = self._held[name], 0
        for chunk in held.chunks:
            where = self._reader.storage_data.get(
                metadata.MetadataIndex(self._keys[name], chunk.offsets)
            )
            if where is None:
                return f"{self._index} does not say where a piece of {name} is"
            file, end = where.relative_path, where.offset + where.length
            if file in self._lost:
                return self._lost[file]
            if end > sizes[file] or where.offset < 0:
                return f"{file} is truncated: {name} ends at byte {end}"
            count = math.prod(chunk.sizes)
            if not 0 <= count * held.properties.dtype.itemsize <= where.length:
                return f"{file}: {name} has {where.length} bytes, not those of {tuple(chunk.sizes)}"
            entries += count
        if entries != math.prod(held.size):
            count = math.prod(held.size)
            return f"{self._index} describes {entries} entries of {name}, not {count}"
        return None


class _Into(DefaultLoadPlanner):
    """Puts the pieces that torch's reader reads into a tensor."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        """The part of the tensor that a piece fills."""
        sides = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self._target[tuple(slice(start, start + count) for start, count in sides)]

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """Nothing is left to do: the piece is in the tensor."""


class _Unpickler(pickle.Unpickler):
    """Builds torch's descriptions of tensors, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of a description."""
        if (module, name) in _CLASSES:
            return _CLASSES[module, name]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"{module}.{name}")


def _metadata(file: RangedFile) -> metadata.Metadata:
    if file.size > LARGEST_METADATA:
        raise InputError(f"{file.name} is damaged: it has {file.size} bytes")
    file.stream.seek(0)
    try:
        with reading(file.name):
            found: Any = _Unpickler(file.stream).load()
    except InputError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError) and "." in str(error.__cause__):
            raise InputError(
                f"{file.name} holds more than descriptions of tensors ({error.__cause__}) and is "
                "not unpickled: save its weights as safetensors"
            ) from error
        raise InputError(
            f"{file.name} is truncated, or not written by torch.distributed.checkpoint"
        ) from error
    usual = isinstance(found, metadata.Metadata) and isinstance(found.storage_data, dict)
    if not usual or not isinstance(found.state_dict_metadata, dict):
        raise InputError(f"{file.name} was not written by torch.distributed.checkpoint")
    described: metadata.Metadata = found
    return described


def _names(held: metadata.Metadata) -> tuple[dict[str, str], bool]:
    """Keys of the model's tensors by name, and whether the names were nested in something else."""
    planned = held.planner_data if isinstance(held.planner_data, dict) else {}
    paths = {
        key: tuple(map(str, planned.get(key, (key,))))
        for key, entry in held.state_dict_metadata.items()
        if isinstance(entry, metadata.TensorStorageMetadata)
    }
    wrapped = False
    while outer := [w for w in MODEL_KEYS if any(len(p) > 1 and p[0] == w for p in paths.values())]:
        paths = {k: p[1:] for k, p in paths.items() if len(p) > 1 and p[0] == outer[0]}
        wrapped = True
    names = {".".join(path): key for key, path in paths.items()}
    return {n: k for n, k in names.items() if not OTHER_STATE.match(n)}, wrapped

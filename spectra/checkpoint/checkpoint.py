"""A checkpoint: its matrices by name, read one at a time."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from data.errors import InputError
from spectra.checkpoint.address import Address, addresses, open_folder
from spectra.checkpoint.compressed import MergedTensors, is_compressed
from spectra.checkpoint.digests import combined_sha256, digest
from spectra.checkpoint.gguf_file import GgufFile
from spectra.checkpoint.module import ModuleTensors
from spectra.checkpoint.parts import UNKNOWN_SHAPE, Part, find_parts, scaled
from spectra.checkpoint.shards import open_shards
from spectra.checkpoint.tensors import FLOAT8, StoredTensor
from spectra.matrices import Matrix, Skipped


class Tensors(Protocol):
    """Tensors by name, read one at a time."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """By name, read or not."""
        ...

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """A tensor, or one entry along its first dimension."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; nothing of it is in memory until it is read."""

    name: str
    revision: str | None
    """The commit, of a checkpoint on a hub."""
    config: Mapping[str, Any]
    matrices: Mapping[Matrix, Part]
    skipped: tuple[Skipped, ...]
    """Everything else that it holds, with the reason why it is left out."""
    problems: tuple[str, ...]
    """What cannot be read, a line each, naming file and tensor."""
    source: Tensors
    complete: bool = True
    """Whether all matrices are known: not where a shard without an index is missing."""
    files: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Of every file that is whole, what tells it from one that took its place."""

    def read(self, matrix: Matrix) -> torch.Tensor:
        """The weight: (rows, cols), in the dtype that it is stored in; float8 as float32.

        Raises
        ------
        InputError
            When its file is missing, truncated, or cannot be reached.
        """
        part = self.matrices[matrix]
        return self._cut(part, self.source.read(part.tensor, part.entry))

    def read_together(self, group: Sequence[Matrix]) -> Iterator[tuple[Matrix, torch.Tensor]]:
        """The weights of matrices that lie in one tensor, which is read once."""
        first = self.matrices[group[0]]
        tensor = self.source.read(first.tensor, first.entry)
        for matrix in group:
            yield matrix, self._cut(self.matrices[matrix], tensor)

    def groups(self) -> list[list[Matrix]]:
        """The matrices, those that lie in one tensor (or entry of a stack) together."""
        together: dict[tuple[str, int | None], list[Matrix]] = {}
        for matrix, part in self.matrices.items():
            together.setdefault((part.tensor, part.entry), []).append(matrix)
        return list(together.values())

    @property
    def format(self) -> str:
        """How most matrices are stored: ``BF16``, ``F32``, …; BF16 for GGUF, which packs them."""
        if "gguf_formats" in self.config:
            return "BF16"
        stored = Counter(self.source.tensors[part.tensor].format for part in self.matrices.values())
        return stored.most_common(1)[0][0]

    @property
    def fused(self) -> dict[str, list[str]]:
        """Layers that hold several matrices, with these; stacks of experts are not among them."""
        together: dict[str, list[str]] = {}
        for matrix, part in self.matrices.items():
            if part.entry is None and part.rows:
                together.setdefault(part.tensor.removesuffix(".weight"), []).append(matrix.name)
        return together

    def sha256(self) -> str:
        """One hash of all matrices, which are read for it; see `combined_sha256`."""
        return combined_sha256({m.name: digest(self.read(m)) for m in self.matrices})

    @property
    def identity(self) -> str:
        """Hash of what tells this checkpoint's files and configuration from any others."""
        known = [self.name, self.revision, dict(self.files), dict(self.config)]
        text = json.dumps(known, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def place(self, matrix: Matrix) -> str:
        """File and tensor of a matrix, for messages."""
        tensor = self.source.tensors[self.matrices[matrix].tensor]
        return f"{tensor.file}: {tensor.name}" if tensor.file else tensor.name

    def _cut(self, part: Part, tensor: torch.Tensor) -> torch.Tensor:
        if part.scale is None or tensor.dtype not in FLOAT8:
            return part.of(tensor)
        try:
            stored = self.source.tensors[part.scale].shape
            stacked = part.entry is not None and len(stored) > 0
            count = self.source.tensors[part.tensor].shape[0]
            entry = part.entry if stacked and stored[0] == count else None
            whole = scaled(tensor, self.source.read(part.scale, entry), self.config)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{part.tensor} does not fit its scales: {error}") from error
        return part.of(whole)


def open_checkpoint(checkpoint: "str | Address | torch.nn.Module | Checkpoint") -> Checkpoint:
    """Open a checkpoint without reading its weights.

    Parameters
    ----------
    checkpoint
        A Hugging Face folder, one that `spectra compress` wrote included, whose matrices are read
        as products; a ``.safetensors``, ``.bin`` or ``.gguf`` file; a URL that fsspec reads; a hub
        name with ``@revision`` or without; or a model in memory.

    Raises
    ------
    InputError
        When there is no checkpoint, or it has no matrices.
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, torch.nn.Module):
        return _in_memory(checkpoint)
    address = checkpoint
    if not isinstance(address, Address):
        found = addresses([str(address)])
        if len(found) > 1:
            raise InputError(
                f"{address} holds {len(found)} checkpoints: name one, e.g. {found[-1]}"
            )
        address = found[0]
    folder, commit = open_folder(address)
    try:
        source = open_shards(folder)
    except InputError as error:
        raise InputError(f"{address}: {error}") from error
    config = {}
    if "config.json" in folder.names:
        try:
            config = json.loads(folder.text("config.json"))
            if not isinstance(config, dict):
                raise ValueError("it holds no JSON object")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{address}: config.json is damaged: {error}") from error
    for file in source.files.values():
        if isinstance(file, GgufFile):
            config = {**file.config, "gguf_formats": file.formats}
    tensors: Tensors = MergedTensors(source, config) if is_compressed(config) else source
    matrices, skipped = find_parts(tensors.tensors, config)
    if not matrices:
        raise InputError(_nothing(str(address), skipped))
    return Checkpoint(
        address.name,
        commit,
        config,
        matrices,
        tuple(skipped),
        source.problems,
        tensors,
        source.complete and not any(s.reason.startswith(UNKNOWN_SHAPE) for s in skipped),
        {name: folder.fingerprint(name) for name in source.whole_files},
    )


def _in_memory(model: torch.nn.Module) -> Checkpoint:
    source = ModuleTensors(model)
    matrices, skipped = source.parts()
    name = str(getattr(source.config, "_name_or_path", "") or type(source.model).__name__)
    to_dict = getattr(source.config, "to_dict", dict)
    return Checkpoint(name, None, to_dict(), matrices, tuple(skipped), (), source)


def _nothing(name: str, skipped: Sequence[Skipped]) -> str:
    reasons = list(dict.fromkeys(s.reason for s in skipped))
    return (
        f"{name} holds no matrix of a linear layer inside a transformer block: "
        f"its {len(skipped)} tensors are left out ({'; '.join(reasons[:3])})"
    )

"""All tensors of a checkpoint, in one file or in shards with an index, and what is wrong with it.

What can be read is read: a shard that is missing or truncated costs its own tensors. Each problem
is a line that names the file and, where there is one, the tensor.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from data.errors import InputError
from spectra.checkpoint.folder import Folder
from spectra.checkpoint.gguf_file import GgufFile
from spectra.checkpoint.safetensors_file import SafetensorsFile
from spectra.checkpoint.tensors import StoredTensor, TensorFile, require_readable
from spectra.checkpoint.torch_file import TorchFile

INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_OTHER_STATE = re.compile(r"training|optimizer|scheduler|scaler|rng_state|random_states")
_NUMBER = re.compile(r"\.\d+(?=\.)")


@dataclass
class Shards:
    """The tensors of a checkpoint by name, and the files that hold them."""

    tensors: dict[str, StoredTensor]
    problems: tuple[str, ...] = ()
    files: dict[str, TensorFile] = field(default_factory=dict)
    complete: bool = True
    """Whether the names of all tensors are known."""

    @property
    def whole_files(self) -> list[str]:
        """Files all of whose tensors can be read."""
        broken = {tensor.file for tensor in self.tensors.values() if tensor.problem}
        return [name for name in self.files if name not in broken]

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """A tensor, or one entry along its first dimension.

        Raises
        ------
        InputError
            When it cannot be read.
        """
        tensor = self.tensors[name]
        require_readable(tensor, first)
        return self.files[tensor.file].read(name, first)


def is_weights(name: str) -> bool:
    """Whether a file's name is one of weights, not of a trainer's other states."""
    return name.endswith(SUFFIXES) and not _OTHER_STATE.match(name)


def open_shards(folder: Folder) -> Shards:
    """Find and open the files of a checkpoint.

    Raises
    ------
    InputError
        When it holds no weights in a format that is read here.
    """
    index = next((name for name in INDICES if name in folder.names), None)
    if index is not None:
        return _indexed(folder, index)
    names = [name for name in WHOLE if name in folder.names]
    candidates = names[:1] or [name for name in folder.names if is_weights(name)]
    if not names:
        for suffix in SUFFIXES:  # one format, the safest
            of_one = [name for name in candidates if name.endswith(suffix)]
            if of_one:
                candidates = of_one
                break
    if not candidates:
        raise InputError(
            "no weights here: expected .safetensors, .bin or .gguf files, "
            f"found {', '.join(folder.names[:5]) or 'no files'}"
        )
    if len(candidates) > 1 and candidates[0].endswith(".gguf"):
        raise InputError(f"several .gguf files, name one: {', '.join(candidates)}")
    if len(candidates) > 1 and candidates[0].endswith((".pt", ".pth")):
        raise InputError(f"several files of torch's, name one: {', '.join(candidates)}")
    return _unindexed(folder, candidates)


def _unindexed(folder: Folder, names: list[str]) -> Shards:
    """Files without an index; numbered shards tell how many there should be."""
    shards = Shards({})
    problems = list(_missing_numbers(names))
    for name in names:
        file = _open(folder, name, problems)
        if file is None:
            continue
        shards.files[name] = file
        for tensor in file.tensors.values():
            if tensor.name in shards.tensors:
                other = shards.tensors[tensor.name].file
                problems.append(f"{name}: {tensor.name} is in {other} as well")
            shards.tensors[tensor.name] = tensor
    if not shards.files:
        raise InputError("; ".join(problems))
    problems += [tensor.problem for tensor in shards.tensors.values() if tensor.problem]
    complete = len(shards.files) == len(names) and not list(_missing_numbers(names))
    return dataclasses.replace(shards, problems=tuple(problems), complete=complete)


def _indexed(folder: Folder, index: str) -> Shards:
    weight_map = _weight_map(folder, index)
    problems: list[str] = []
    files = {}
    for name in sorted(set(weight_map.values())):
        if name not in folder.names:
            lost = [tensor for tensor, file in weight_map.items() if file == name]
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            problems.append(f"{name} is missing: {index} has {lost[0]}{more} in it")
        elif file := _open(folder, name, problems):
            files[name] = file
    held = {tensor.name: tensor for file in files.values() for tensor in file.tensors.values()}
    unlisted = [name for name in held if name not in weight_map]
    problems += [f"{held[name].file}: {name} is not in {index}" for name in unlisted]
    tensors = {}
    shapes = _sibling_shapes(held)
    for name, file_name in weight_map.items():
        found = files[file_name].tensors.get(name) if file_name in files else None
        if found is None:
            reason = f"{file_name}: {name} is not in it, though {index} says so"
            if file_name in files:
                problems.append(reason)
            else:
                reason = f"{file_name} is missing, with {name}"
            shape, stored = shapes.get(_NUMBER.sub(".*", name), ((), ""))
            found = StoredTensor(name, shape, stored, file_name, reason)
        elif found.problem:
            problems.append(found.problem)
        tensors[name] = found
    if not files:
        raise InputError("; ".join(problems))
    return Shards(tensors, tuple(problems), files)


def _weight_map(folder: Folder, index: str) -> dict[str, str]:
    try:
        weight_map: Any = json.loads(folder.text(index))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is damaged: {error}") from error


def _open(folder: Folder, name: str, problems: list[str]) -> TensorFile | None:
    try:
        if name.endswith(".gguf"):
            if folder.local is None:
                raise InputError(f"{name} is not on this machine: download it, and name the file")
            return GgufFile(folder.local / name)
        file = folder.open(name)
        return SafetensorsFile(file) if name.endswith(".safetensors") else TorchFile(file)
    except InputError as error:
        problems.append(str(error))
        return None


def _missing_numbers(names: list[str]) -> Iterator[str]:
    """Of shards that are numbered like ``…-00002-of-00003…``, those that are not there."""
    found = [match for name in names if (match := re.search(r"-(\d+)-of-(\d+)", name))]
    if not found:
        return
    count = max(int(match[2]) for match in found)
    there = {int(match[1]) for match in found}
    first = found[0]
    for number in sorted(set(range(1, count + 1)) - there):
        text = f"-{number:0{len(first[1])}d}-of-{first[2]}"
        yield f"{first.string.replace(first[0], text)} is missing"


def _sibling_shapes(
    tensors: dict[str, StoredTensor],
) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and format that tensors of a name have in most layers."""
    found: dict[str, Counter[tuple[tuple[int, ...], str]]] = {}
    for tensor in tensors.values():
        key = _NUMBER.sub(".*", tensor.name)
        found.setdefault(key, Counter())[tensor.shape, tensor.format] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in found.items()}

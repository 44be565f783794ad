"""All tensors of a checkpoint, in one file or in shards with an index, and its problems.

Everything readable is read: a missing or truncated shard costs only its own tensors. Each problem
is one line that names the file and, if it concerns one, the tensor.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from spectra.checkpoint.deepspeed import require_whole
from spectra.checkpoint.folder import Folder
from spectra.checkpoint.formats import FORMATS, INDEX, PIECE, suffix_of
from spectra.checkpoint.gguf_file import gguf_parts
from spectra.checkpoint.tensors import StoredTensor, TensorFile, require_readable
from spectra_data.errors import InputError
from spectra_data.reading import parse_json

INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
USUAL = ("model.safetensors", INDICES[0], "pytorch_model.bin", INDICES[1])
"""Files that transformers looks for, in this order."""
_OTHER_STATE = re.compile(
    r"training|optimizer|scheduler|scaler|sampler|rng_state|random_states|adapter_model|mmproj"
    r"|.*_optim_states"
)
_NUMBER = re.compile(r"\.\d+(?=\.)")
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(\.\w+)")
_PARALLEL = (
    re.compile(r"consolidated\.(\d\d)\.pth"),
    re.compile(r"mp_rank_(\d+)(?:_\d+)?(?:_model_states)?\.pt"),
    re.compile(r".*[-_.](?:rank|shard|part|tp)[-_]?(\d+)\.(?:pt|pth|bin|safetensors)"),
)
"""Names of files that each hold a part of every matrix (Meta, Megatron, DeepSpeed)."""


@dataclass
class Shards:
    """The tensors of a checkpoint by name, and the files that hold them.

    Raises
    ------
    InputError
        When a name is of several lines: printed, it would pass for lines of the program's own.
    """

    tensors: dict[str, StoredTensor]
    problems: tuple[str, ...] = ()
    files: dict[str, TensorFile] = field(default_factory=dict)
    complete: bool = True
    """Whether the names of all tensors are known."""

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if len(name.splitlines()) > 1:
                place = f"{tensor.file}: " if tensor.file else ""
                raise InputError(f"{place}{name!a} is no name of a tensor: it has a line break")

    @property
    def wrapped(self) -> bool:
        """Whether a file nests its tensors in something else, e.g. a trainer's state."""
        return any(getattr(file, "wrapped", False) for file in self.files.values())

    @property
    def whole_files(self) -> list[str]:
        """Files whose tensors can all be read."""
        broken = {tensor.file for tensor in self.tensors.values() if tensor.problem}
        whole = {name: file for name, file in self.files.items() if name not in broken}
        parts = [part for file in whole.values() for part in getattr(file, "parts", ())]
        return [*whole, *parts]

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """A tensor, or one entry along its first dimension.

        Raises
        ------
        InputError
            When the tensor cannot be read.
        """
        tensor = self.tensors[name]
        require_readable(tensor, first)
        return self.files[tensor.file].read(name, first)


def is_weights(name: str) -> bool:
    """Whether a file's name is that of weights, not of a trainer's other states."""
    return suffix_of(name) is not None and not is_other_state(name)


def is_other_state(name: str) -> bool:
    """Whether the name of a file or a folder is that of a trainer's other states."""
    return _OTHER_STATE.match(name) is not None


def usual_files(folder: Folder, explicit: str | None = None) -> list[str]:
    """The files that transformers loads from a folder; empty if it would find none.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    explicit
        Weight file that the configuration names as ``transformers_weights``.
    """
    first = _first(folder, explicit)
    if first is None:
        return []
    return sorted(set(_weight_map(folder, first).values())) if first.endswith(".json") else [first]


def open_shards(folder: Folder, explicit: str | None = None) -> Shards:
    """Find and open the files of a checkpoint: the one that was named, or those of the folder.

    In a folder with several candidates, the choice is that of transformers: ``model.safetensors``,
    then its index, then ``pytorch_model.bin``, then its index; if there are none of these, numbered
    shards, or the only file of its format.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    explicit
        See `usual_files`.

    Raises
    ------
    InputError
        When the folder holds no weights in a known format, or the choice is ambiguous.
    """
    if folder.named is not None:
        return _of_named(folder, folder.named, explicit)
    if explicit is not None and explicit not in folder.names:
        raise InputError(f"{explicit} is missing: config.json names it as the weights")
    first = _first(folder, explicit)
    if first is not None and first.endswith(".json"):
        return _indexed(folder, first)
    return _unindexed(folder, [first] if first is not None else _loose(folder))


def _of_named(folder: Folder, name: str, explicit: str | None) -> Shards:
    """The file that was named; of a model in several GGUF files, all of them."""
    if name.endswith(".gguf"):
        return _unindexed(folder, gguf_parts(folder, name))
    usual = usual_files(folder, explicit)
    numbered = [other for other in folder.names if _set_of(other) == _set_of(name) is not None]
    parts = usual if name in usual else numbered
    if len(parts) > 1:
        raise InputError(f"{name} is one of {len(parts)} files of a checkpoint: name their folder")
    require_whole([name], named=True)
    _require_whole_matrices(folder, name)
    return _unindexed(folder, [name])


def _require_whole_matrices(folder: Folder, name: str) -> None:
    """Refuse a file of tensor-parallel weights, which holds a part of every matrix."""
    part = next((m for pattern in _PARALLEL if (m := pattern.fullmatch(name))), None)
    if part is None:
        return
    siblings = [other for other in folder.names if re.fullmatch(_sibling_pattern(part), other)]
    if len(siblings) > 1:
        raise InputError(
            f"{', '.join(siblings)} each hold a part of every matrix: convert them to one "
            "checkpoint, e.g. with transformers' script for these weights"
        )


def _first(folder: Folder, explicit: str | None) -> str | None:
    """The file or index that transformers loads; None if it finds none."""
    order = [explicit] if explicit else USUAL
    return next((name for name in order if name in folder.names), None)


def _loose(folder: Folder) -> list[str]:
    """Files without an index or a usual name: those of one format, the safest."""
    found = [name for name in folder.names if is_weights(name)]
    require_whole(found)
    for suffix in FORMATS:
        names = [name for name in found if name.endswith(suffix)]
        if suffix == ".gguf" and len(names) > 1:
            return gguf_parts(folder)
        sets = {_set_of(name) for name in names} - {None}
        if len(sets) == 1:
            return [name for name in names if _set_of(name) in sets]
        if len(names) > 1:
            _require_whole_matrices(folder, names[0])
            raise InputError(f"there are several {suffix} files: name one of {', '.join(names)}")
        if names:
            return names
    _require_index(folder.names)
    raise InputError(
        f"no weights here: expected {', '.join(FORMATS)} files, "
        f"found {', '.join(folder.names[:5]) or 'no files'}"
    )


def _require_index(names: list[str]) -> None:
    """Require the index of pieces of tensors."""
    pieces = [name for name in names if name.endswith(PIECE)]
    if pieces and INDEX not in names:
        raise InputError(
            f"{pieces[0]} cannot be read without {INDEX}, which torch.distributed writes last: "
            "the save did not end, or the file was not copied"
        )


def _set_of(name: str) -> tuple[str, str] | None:
    """Key shared by the shards of one checkpoint: the name before the number, and the count."""
    match = _SHARD.fullmatch(name)
    return (match[1], match[3]) if match else None


def _sibling_pattern(part: re.Match[str]) -> str:
    """A pattern for a file and its siblings, whose names differ in the number."""
    start, end = part.span(1)
    return re.escape(part.string[:start]) + r"\d+" + re.escape(part.string[end:])


def _unindexed(folder: Folder, names: list[str]) -> Shards:
    """Open files without an index; the names of numbered shards tell their count."""
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
                problems.append(f"{name}: {tensor.name} is also in {other}")
            shards.tensors[tensor.name] = tensor
    if not shards.files:
        raise InputError("; ".join(problems))
    broken = (tensor.problem for tensor in shards.tensors.values() if tensor.problem)
    problems += dict.fromkeys(broken)
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
            problems.append(f"{name} is missing: {index} places {lost[0]}{more} in it")
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
            reason = f"{file_name} lacks {name}, which {index} places in it"
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
        weight_map: Any = parse_json(folder.text(index), index)["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is damaged: it has no weight_map of names and files") from error


def _open(folder: Folder, name: str, problems: list[str]) -> TensorFile | None:
    try:
        return FORMATS[suffix_of(name) or name](folder.open(name))
    except InputError as error:
        problems.append(str(error))
        return None


def _missing_numbers(names: list[str]) -> Iterator[str]:
    """The missing files of shards that are numbered like ``…-00002-of-00003…``."""
    found = [match for name in names if (match := re.search(r"-(\d+)-of-(\d+)", name))]
    if not found or names[0].endswith(".gguf"):  # these declare their part inside the file
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
    """The shape and format of a name's tensors in most layers; ``*`` stands for the layer."""
    found: dict[str, Counter[tuple[tuple[int, ...], str]]] = {}
    for tensor in tensors.values():
        key = _NUMBER.sub(".*", tensor.name)
        found.setdefault(key, Counter())[tensor.shape, tensor.format] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in found.items()}

"""A checkpoint: its matrices by name, read one at a time."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from spectra.checkpoint import update
from spectra.checkpoint.address import Address, home_of, one_address, open_folder
from spectra.checkpoint.compressed import MergedTensors, is_compressed
from spectra.checkpoint.digests import combined_sha256, digest
from spectra.checkpoint.effective import EffectiveTensors, has_pairs
from spectra.checkpoint.folder import Folder
from spectra.checkpoint.gguf_file import GgufFile, described
from spectra.checkpoint.match import Match, match_of
from spectra.checkpoint.module import ModuleTensors
from spectra.checkpoint.named import NamedTensors
from spectra.checkpoint.notes import note
from spectra.checkpoint.shards import is_weights, open_shards, usual_files
from spectra.checkpoint.tensor_slices import UNKNOWN_SHAPE, TensorSlice, find_slices, scaled
from spectra.checkpoint.tensors import FLOAT8, StoredTensor
from spectra.matrices import Matrix, Skipped, layer_of
from spectra_data.errors import InputError
from spectra_data.reading import parse_json

ADAPTER = update.DESCRIPTION
IN_TOWER = "in another tower than the language model"


class Tensors(Protocol):
    """Tensors by name, read one at a time."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Tensors by name, readable or not."""
        ...

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """A tensor, or one entry along its first dimension."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint; no tensor is in memory until it is read."""

    name: str
    revision: str | None
    """Commit, if the checkpoint is on a hub."""
    config: Mapping[str, Any]
    matrices: Mapping[Matrix, TensorSlice]
    skipped: tuple[Skipped, ...]
    """All other tensors, each with the reason why it is left out."""
    problems: tuple[str, ...]
    """Parts that cannot be read, one line each, naming file and tensor."""
    source: Tensors
    """Tensors by the names of the model's parameters; only those that are a parameter."""
    stored: Tensors
    """The same tensors by the names in the files."""
    complete: bool = True
    """Whether all matrices are known; False if a shard is missing and there is no index."""
    files: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Fingerprint of every whole file, which tells it from one that replaced it."""
    match: Match | None = None
    """Match of its tensors with its model's parameters; None if transformers lacks the model."""
    usual: bool = True
    """Whether transformers, given the folder, loads these files under the same names."""
    towers: Mapping[Matrix, TensorSlice] = field(default_factory=dict)
    """Matrices of towers other than the language model, left out of `matrices`."""

    def read(self, matrix: Matrix) -> torch.Tensor:
        """The weight: (rows, cols), in the stored dtype; float8 as float32.

        Raises
        ------
        InputError
            When its file is missing, truncated, or out of reach.
        """
        where = self._slice_of(matrix)
        return self._cut(where, self.source.read(where.tensor, where.entry))

    def read_together(self, group: Sequence[Matrix]) -> Iterator[tuple[Matrix, torch.Tensor]]:
        """The weights of matrices that share one tensor, which is read once."""
        first = self._slice_of(group[0])
        tensor = self.source.read(first.tensor, first.entry)
        for matrix in group:
            yield matrix, self._cut(self._slice_of(matrix), tensor)

    def groups(self) -> list[list[Matrix]]:
        """The matrices, grouped by the tensor (or entry of a stack) that holds them."""
        together: dict[tuple[str, int | None], list[Matrix]] = {}
        for matrix, where in self.matrices.items():
            together.setdefault((where.tensor, where.entry), []).append(matrix)
        return list(together.values())

    @property
    def format(self) -> str:
        """Format of most matrices: ``BF16``, ``F32``, …; BF16 for GGUF, which packs them."""
        if "gguf_formats" in self.config:
            return "BF16"
        stored = Counter(
            self.source.tensors[where.tensor].format for where in self.matrices.values()
        )
        return stored.most_common(1)[0][0]

    @property
    def fused(self) -> dict[str, list[str]]:
        """Layers that fuse several matrices, with the names of these; no stacks of experts."""
        together: dict[str, list[str]] = {}
        for matrix, where in self.matrices.items():
            if where.entry is None and where.rows:
                together.setdefault(where.tensor.removesuffix(".weight"), []).append(matrix.name)
        return together

    def sha256(self) -> str:
        """One hash of all matrices, which reads all of them; see `combined_sha256`."""
        return combined_sha256({m.name: digest(self.read(m)) for m in self.matrices})

    def with_towers(self) -> "Checkpoint":
        """The same checkpoint with the matrices of all towers, the language model's last."""
        skipped = tuple(s for s in self.skipped if s.reason != IN_TOWER)
        both = {**self.towers, **self.matrices}
        return dataclasses.replace(self, matrices=both, towers={}, skipped=skipped)

    def spanning(self, names: Collection[str]) -> "Checkpoint":
        """The same checkpoint, with all towers if one of these matrices is outside the language
        model.
        """
        return self.with_towers() if any(m.name in names for m in self.towers) else self

    @property
    def identity(self) -> str:
        """Hash that identifies this checkpoint: name, revision, files and configuration."""
        known = [self.name, self.revision, dict(self.files), dict(self.config)]
        text = json.dumps(known, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def place(self, matrix: Matrix) -> str:
        """File and tensor that hold a matrix, for messages."""
        tensor = self.source.tensors[self._slice_of(matrix).tensor]
        return f"{tensor.file}: {tensor.name}" if tensor.file else tensor.name

    def _slice_of(self, matrix: Matrix) -> TensorSlice:
        return self.matrices[matrix] if matrix in self.matrices else self.towers[matrix]

    def _cut(self, where: TensorSlice, tensor: torch.Tensor) -> torch.Tensor:
        if where.scale is None or tensor.dtype not in FLOAT8:
            return where.of(tensor)
        try:
            stored = self.source.tensors[where.scale].shape
            stacked = where.entry is not None and len(stored) > 0
            count = self.source.tensors[where.tensor].shape[0]
            entry = where.entry if stacked and stored[0] == count else None
            whole = scaled(tensor, self.source.read(where.scale, entry), self.config)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{where.tensor} does not fit its scales: {error}") from error
        return where.of(whole)


def open_checkpoint(
    checkpoint: "str | Address | torch.nn.Module | Checkpoint", *, updates: bool = False
) -> Checkpoint:
    """Open a checkpoint without reading its weights.

    Parameters
    ----------
    checkpoint
        A Hugging Face folder, also one that `spectra compress` wrote, whose matrices are read as
        products; a ``.safetensors``, ``.bin``, ``.ckpt`` or ``.gguf`` file; a folder of
        torch.distributed or DeepSpeed; a URL that fsspec reads; a hub name, with or without
        ``@revision``; or a model in memory.
    updates
        Whether an adapter of peft is opened, too: as the update that it adds to its base's weights.

    Raises
    ------
    InputError
        When there is no checkpoint, or it holds no matrices.
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, torch.nn.Module):
        return _in_memory(checkpoint)
    address = checkpoint if isinstance(checkpoint, Address) else one_address(str(checkpoint))
    folder, commit = open_folder(address)
    try:
        if ADAPTER in folder.names and folder.named is None and usual_files(folder):
            raise InputError(
                f"it holds a checkpoint and an adapter ({ADAPTER}): move one of them to a folder "
                "of its own"
            )
        if _is_adapter(folder):
            return _update(address, folder, commit, updates)
        config = _config(folder)
        explicit = config.get("transformers_weights")
        source = open_shards(folder, explicit)
    except InputError as error:
        raise InputError(f"{address}: {error}") from error
    ggufs = [file for file in source.files.values() if isinstance(file, GgufFile)]
    if ggufs:
        config = described(ggufs)
        _require_blocks(address, source.tensors, config.get("num_hidden_layers"))
    stored: Tensors = MergedTensors(source, config) if is_compressed(config) else source
    tensors = stored
    match = match_of(tensors.tensors, config) if source.complete and not ggufs else None
    paths: Mapping[str, str] = {}
    problems = source.problems
    if match is not None:
        if problems:  # read what can be read
            problems += tuple(match.in_blocks().lines())
        else:
            _require_match(address, match)
        names = {stored: match.names.get(stored, plain) for stored, plain in match.plain.items()}
        paths = match.matrices
        if any(stored != name for stored, name in names.items()):
            tensors = NamedTensors(tensors, names)
    if has_pairs(tensors.tensors):
        tensors = EffectiveTensors(tensors)
    found, skipped = find_slices(tensors.tensors, config, paths=paths)
    if not found:
        raise InputError(_nothing(str(address), skipped))
    matrices, towers = parted(found, match.language if match else "")
    usual = sorted(source.files) == usual_files(folder, explicit) and not source.wrapped
    return Checkpoint(
        address.name,
        commit,
        config,
        matrices,
        (*skipped, *(Skipped(matrix.name, IN_TOWER) for matrix in towers)),
        problems,
        tensors,
        stored,
        source.complete and not any(s.reason.startswith(UNKNOWN_SHAPE) for s in skipped),
        {name: folder.fingerprint(name) for name in source.whole_files},
        match,
        usual and not (match and match.dropped),
        towers,
    )


def parted(
    found: Mapping[Matrix, TensorSlice], language: str
) -> tuple[dict[Matrix, TensorSlice], dict[Matrix, TensorSlice]]:
    """The matrices of the language model, and those of other towers.

    Parameters
    ----------
    found
        Matrices with their slices.
    language
        Prefix of the language model's names; empty if there is no other tower.
    """
    matrices = {m: where for m, where in found.items() if m.name.startswith(language)}
    return matrices, {m: where for m, where in found.items() if m not in matrices}


def _is_adapter(folder: Folder) -> bool:
    """Whether a folder, or the file that was named in it, holds an adapter of peft."""
    if folder.named is not None:
        return folder.named in update.WEIGHTS
    return ADAPTER in folder.names and not any(is_weights(name) for name in folder.names)


def _update(address: Address, folder: Folder, commit: str | None, updates: bool) -> Checkpoint:
    """The update of an adapter of peft, in place of a checkpoint."""
    if not updates:
        raise InputError(
            "it is a peft adapter, not a checkpoint: merge it into its base (merge_and_unload), "
            "and save the result"
        )
    adapter = update.Lora.of(folder)
    source = open_shards(folder, update.weights_of(folder))
    tensors = update.UpdateTensors(source, adapter)
    config = adapter.base_config
    found, skipped = find_slices(tensors.tensors, config, upright=True)
    skipped += tensors.skipped
    if not found:
        raise InputError(_nothing("it", skipped))
    if way := adapter.moves_base:
        note(f"{address}: {way} moves a part of the base's weights into the adapter's factors")
    note(f"{address}: scanning the update that this adapter adds to its base's weights")
    broken = tuple(t.problem for t in tensors.tensors.values() if t.problem)
    return Checkpoint(
        address.name,
        commit,
        {**config, "adapter": asdict(adapter)},
        found,
        tuple(skipped),
        tuple(dict.fromkeys((*source.problems, *broken))),
        tensors,
        source,
        source.complete and not any(s.reason.startswith(UNKNOWN_SHAPE) for s in skipped),
        {
            name: folder.fingerprint(name)
            for name in (*source.whole_files, ADAPTER)
            if name in folder.names
        },
        usual=False,
    )


def _config(folder: Folder) -> dict[str, Any]:
    """The configuration in a folder, or around the weights' own folder; {} if there is none."""
    if "config.json" not in folder.names:
        home = folder.local and home_of(folder.local)
        if not home or home == folder.local:
            return {}
        folder = Folder.at(home)
    config = parse_json(folder.text("config.json"), "config.json")
    if not isinstance(config, dict):
        raise InputError("config.json is damaged: it is not a JSON object")
    return config


def _require_blocks(address: Address, tensors: Collection[str], count: int | None) -> None:
    """Require that a GGUF file holds as many blocks as it declares."""
    held = len({layer_of(name) for name in tensors} - {None})
    if count is not None and held != count:
        raise InputError(f"{address} declares {count} blocks, but holds tensors of {held}")


def _require_match(address: Address, match: Match) -> None:
    """Require that a checkpoint holds the matrices that its configuration describes.

    Other differences change no matrix, so they are only noted.
    """
    wrong = match.in_blocks().lines()
    if wrong:
        raise InputError(f"{address} does not fit its config.json: {'; '.join(wrong)}")
    if match.dropped:
        note(f"{address}: reading names without {match.dropped}")
    for line in match.lines():
        note(f"{address}: {line}")


def _in_memory(model: torch.nn.Module) -> Checkpoint:
    source = ModuleTensors(model)
    found, skipped = source.slices()
    matrices, towers = parted(found, source.language)
    name = str(getattr(source.config, "_name_or_path", "") or type(source.model).__name__)
    to_dict = getattr(source.config, "to_dict", dict)
    left = (*skipped, *(Skipped(matrix.name, IN_TOWER) for matrix in towers))
    return Checkpoint(name, None, to_dict(), matrices, left, (), source, source, towers=towers)


def _nothing(name: str, skipped: Sequence[Skipped]) -> str:
    reasons = list(dict.fromkeys(s.reason for s in skipped))
    return (
        f"{name} holds no matrix of a linear layer inside a transformer block: "
        f"its {len(skipped)} tensors are left out ({'; '.join(reasons[:3])})"
    )

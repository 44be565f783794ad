"""A GGUF file: its tensors under the names that transformers gives them, dequantised one by one."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectra.checkpoint.folder import Folder, RangedFile
from spectra.checkpoint.gguf_header import require_header
from spectra.checkpoint.tensors import StoredTensor
from spectra_data.errors import InputError
from spectra_data.reading import reading

BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
"""llama.cpp's name of a block's layer: transformers' name.

Not gguf's own map: it has many names for one, and their order differs by family.
"""
STACKED = "_exps"
CONFIG = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "num_experts": "expert_count",
}


class GgufFile:
    """The tensors of one file, as float32."""

    def __init__(self, file: RangedFile) -> None:
        file.stream.close()  # the gguf library opens it itself
        path = file.local
        if path is None:
            raise InputError(f"{file.name} is not on this machine: download it, and name that file")
        gguf = _gguf()
        require_header(path)
        with reading(path.name):
            reader = gguf.GGUFReader(path)
            self.config = _config(reader)
        self._dequantize = gguf.quants.dequantize
        size = path.stat().st_size
        self._entries: dict[str, Any] = {}
        self.tensors: dict[str, StoredTensor] = {}
        for entry in reader.tensors:
            name = transformers_name(entry.name)
            shape = tuple(int(side) for side in reversed(entry.shape))
            end = int(entry.data_offset) + int(entry.n_bytes)
            problem = None
            if end > size:
                problem = f"{path.name} is truncated: {entry.name} ends at byte {end}"
            self._entries[name] = entry
            # read as float32, in any format of the file
            self.tensors[name] = StoredTensor(name, shape, "F32", path.name, problem)
        self.formats = sorted({entry.tensor_type.name for entry in reader.tensors})
        self._file = RangedFile(_local(), str(path), path.name, size)

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """See `TensorFile`."""
        entry, shape = self._entries[name], self.tensors[name].shape
        offset, count = int(entry.data_offset), int(entry.n_bytes)
        if first is not None:
            count //= shape[0]
            offset, shape = offset + first * count, shape[1:]
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        stored = self._file.read(offset, count).numpy().reshape(rows, -1)
        values = self._dequantize(stored.view(entry.data.dtype), entry.tensor_type)
        return torch.from_numpy(np.ascontiguousarray(values, np.float32).reshape(shape))


def described(files: Sequence[GgufFile]) -> dict[str, Any]:
    """The configuration of a model in one file or several, the first of which describes it."""
    formats = sorted({name for file in files for name in file.formats})
    return {**files[0].config, "gguf_formats": formats}


@dataclass(frozen=True)
class Split:
    """The part of a model that a file holds."""

    number: int
    """Number of the part, from 0."""
    count: int
    """Number of parts; 1 for a whole model."""
    tensors: int
    """Number of tensors in the whole model; 0 if the file does not say."""


def split_of(path: Path) -> Split:
    """The part of a model that a file declares itself to be, regardless of its name.

    Raises
    ------
    InputError
        When it cannot be read.
    """
    gguf = _gguf()
    require_header(path)
    with reading(path.name):
        fields = gguf.GGUFReader(path).fields
    keys = ("split.no", "split.count", "split.tensors.count")
    number, count, tensors = (_value(fields[k]) if k in fields else 0 for k in keys)
    return Split(int(number or 0), max(1, int(count or 1)), int(tensors or 0))


def gguf_parts(folder: Folder, named: str | None = None) -> list[str]:
    """The files of a model: one file, or all parts of a split model in order.

    Parameters
    ----------
    folder
        Folder of the model.
    named
        One of its files; None if all GGUF files of the folder must belong to one model.

    Raises
    ------
    InputError
        When a part is missing, or the files belong to several models.
    """
    files = [n for n in folder.names if n.endswith(".gguf") and not n.startswith("mmproj")]
    if folder.local is None:
        return [named] if named is not None else files
    if named is not None:
        folder.open(named).stream.close()  # raises if it is a pointer
        chosen = split_of(folder.local / named)
        if chosen.count == 1:
            return [named]
    splits = {name: split_of(folder.local / name) for name in files if name != named}
    if named is not None:
        alike = (chosen.count, chosen.tensors)
        splits = {n: s for n, s in splits.items() if (s.count, s.tensors) == alike}
        splits[named] = chosen
    if named is None and len({(s.count, s.tensors) for s in splits.values()}) > 1:
        raise InputError(f"there are several .gguf files: name one of {', '.join(splits)}")
    count = next(iter(splits.values())).count
    if len(splits) == count == 1:
        return list(splits)
    numbers = Counter(split.number for split in splits.values())
    if count == 1 or max(numbers.values()) > 1:
        raise InputError(f"there are several .gguf files: name one of {', '.join(sorted(splits))}")
    if absent := sorted(set(range(count)) - numbers.keys()):
        held = ", ".join(f"{name} is part {split.number + 1}" for name, split in splits.items())
        raise InputError(f"part {absent[0] + 1} of {count} is missing next to the others: {held}")
    return sorted(splits, key=lambda name: splits[name].number)


def transformers_name(name: str) -> str:
    """Transformers' name of a tensor of llama.cpp: ``model.layers.0.mlp.up_proj``."""
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None:
        return name
    layer, part, kind = match.groups()
    suffix = "" if part.endswith(STACKED) else f".{kind}"
    return f"model.layers.{layer}.{BLOCK_NAMES.get(part, part)}{suffix}"


def _config(reader: Any) -> dict[str, Any]:
    """The model's configuration according to the file, with transformers' keys."""
    values = {name: _value(field) for name, field in reader.fields.items()}
    architecture = values.get("general.architecture", "")
    config = {
        name: values[f"{architecture}.{key}"]
        for name, key in CONFIG.items()
        if isinstance(values.get(f"{architecture}.{key}"), int)
    }
    # the converter lays out its layers, unlike the transformers family of that name
    return {
        "model_type": f"gguf:{architecture}",
        "_name_or_path": values.get("general.name"),
    } | config


def _value(field: Any) -> Any:
    try:
        value = field.contents()
    except Exception:  # a type that this version of the package does not know
        return None
    return value if isinstance(value, int | float | str) else None


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            "reading GGUF needs the extra `gguf`: pip install 'spectra-dynamics[gguf]'"
        ) from error
    return gguf


def _local() -> Any:
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem()

"""Checkpoints for tests, in every format, whole and broken."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.small import small_model


def saved(folder: Path, family: str = "llama", seed: int = 0, **changes):
    """A model, and its checkpoint in one safetensors file."""
    model = small_model(family, seed, **changes)
    model.save_pretrained(folder)
    return model


def sharded(folder: Path, shards: int = 3, family: str = "llama", seed: int = 0) -> Path:
    """A checkpoint in several shards with an index."""
    saved(folder, family, seed)
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    weight_map = {}
    for number in range(shards):
        count = len(tensors)
        names = sorted(tensors)[number * count // shards : (number + 1) * count // shards]
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def as_torch_file(folder: Path, **options) -> Path:
    """The same tensors as torch's own format."""
    whole = folder / "model.safetensors"
    torch.save(load_file(whole), folder / "pytorch_model.bin", **options)
    whole.unlink()
    return folder


def rewritten(folder: Path, change) -> Path:
    """The same checkpoint with other tensors: `change` edits the dictionary."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, whole)
    return folder


def edit_config(folder: Path, **changes) -> None:
    """Change fields of ``config.json``."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

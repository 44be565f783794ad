"""`merge`: write a compressed checkpoint as a dense one that any tool loads."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spectra.checkpoint.compressed import is_compressed
from spectra.checkpoint.spectra_config import SpectraConfig
from spectra.checkpoint.writer import SHARD_BYTES, begin, finish, shards_of, write_shards, writing
from spectra.compression.compress import rounded, with_dtype
from spectra.compression.sources import require_dtype, tensor_bytes
from spectra.machine.progress import Progress, silent
from spectra.models.empty import empty_model
from spectra.models.loading import load_whole, require_finite
from spectra.models.pairs import compressed_layers
from spectra.models.source import COMPANIONS, Source
from spectra.store.weights import share
from spectra.transformers_internals import Conversion
from spectra_data.errors import InputError
from spectra_data.partial import partial_folder


@dataclass(frozen=True)
class Merged:
    """Result of `merge`."""

    path: Path
    merged: int
    """Number of factored matrices that were multiplied out."""
    parameters: int
    bytes: int


def merge(
    checkpoint: str | Source,
    out: str | Path,
    *,
    dtype: str | None = None,
    compressed: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = silent,
) -> Merged:
    """Write a compressed checkpoint, or an adapter with its base, as a dense checkpoint.

    Parameters
    ----------
    checkpoint
        Folder or hub name of a checkpoint that `compress` wrote, or an adapter's folder of `spectra
        finetune`.
    out
        Folder to write.
    dtype
        Dtype of the stored weights; that of the factors by default.
    compressed
        Whether low-rank layers stay low-rank; only for an adapter.
    shard_bytes
        Size of the largest shard in bytes.
    progress
        Called with a stage, the number of its steps done, and their total.

    Raises
    ------
    InputError
        When the checkpoint is not compressed, or damaged; when the folder holds something else, or
        another process writes to it.
    """
    source = Source.of(checkpoint)
    with writing(Path(out)):
        if source.adapter is not None:
            return _with_adapter(source, Path(out), dtype, compressed, shard_bytes)
        if compressed:
            raise InputError(
                f"{checkpoint} is not an adapter: only an adapter's merge can stay compressed"
            )
        return _dense(source, Path(out), dtype, shard_bytes, progress)


def _dense(
    source: Source,
    out: Path,
    dtype: str | None,
    shard_bytes: int,
    progress: Progress,
) -> Merged:
    """Write products in place of factors, shard by shard."""
    opened = source.checkpoint
    if not is_compressed(opened.config):
        raise InputError(f"{source} is not a compressed checkpoint: there is nothing to merge")
    if opened.problems:
        raise InputError("; ".join(opened.problems))
    described = SpectraConfig.of(opened.config)
    wide = None if dtype is None else require_dtype(dtype)

    names = _stored_names(source)

    def make(name: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        tensor = opened.source.read(name)
        require_finite(opened.name, [(name, tensor)])
        made = rounded(name, tensor, wide if tensor.is_floating_point() else None)
        return {names.get(name, name): made}, {}

    sizes = {name: tensor_bytes(opened.source, name) for name in opened.source.tensors}
    written = write_shards(
        out,
        shards_of(sizes, shard_bytes),
        make,
        key=f"merge {opened.identity} {dtype}",
        progress=lambda done, count: progress("tensors written", done, count),
    )
    source.copy_companions(out)
    config = {k: v for k, v in opened.config.items() if k != "quantization_config"}
    finish(out, with_dtype(config, dtype))
    return Merged(out, len(described.factored), written.parameters, written.bytes)


def _stored_names(source: Source) -> dict[str, str]:
    """Names under which the model's parameters are stored, where they are others than its own."""
    model = empty_model(source)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    conversion = Conversion(model)
    return {name: conversion.stored_name(name, shapes) for name in shapes}


def _with_adapter(
    source: Source,
    out: Path,
    dtype: str | None,
    compressed: bool,
    shard_bytes: int,
) -> Merged:
    """Write the base of an adapter with the adapter applied; the model is in memory."""
    adapter = source.adapter
    assert adapter is not None
    stored = getattr(source.config, "dtype", None) or torch.float32
    target = stored if dtype is None else require_dtype(dtype)
    model: Any = load_whole(source).model  # in float32, so that weights are rounded only once
    products = len(compressed_layers(model))
    if products and not compressed:
        model.dequantize()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(target)
    known = json.dumps([adapter.sha256, str(target), compressed, shard_bytes])
    begin(out, hashlib.sha256(known.encode()).hexdigest())
    with partial_folder(out / "model") as partial:
        model.save_pretrained(partial, max_shard_size=shard_bytes)
        share(partial)
        source.base.copy_companions(partial)
        for name in COMPANIONS:  # the tokenizer that it was finetuned with
            if (Path(source.address) / name).is_file():
                shutil.copyfile(Path(source.address) / name, partial / name)
        config = json.loads((partial / "config.json").read_text("utf-8"))
        (partial / "config.json").unlink()
        for file in partial.iterdir():
            file.replace(out / file.name)
    finish(out, config)
    return Merged(
        out,
        0 if compressed else products,
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() * p.element_size() for p in model.parameters()),
    )

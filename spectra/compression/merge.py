"""`merge`: a compressed checkpoint as a dense one that any tool loads."""

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
from spectra.models.loading import load_whole, require_finite
from spectra.models.pairs import compressed_layers
from spectra.models.source import COMPANIONS, Source
from spectra_data.errors import InputError
from spectra_data.partial import partial_folder


@dataclass(frozen=True)
class Merged:
    """What was written."""

    path: Path
    merged: int
    """Matrices that were products."""
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
    """Write the dense checkpoint that a compressed one stands for, or that an adapter makes.

    Parameters
    ----------
    checkpoint
        A folder, or a hub name, of `compress`; or an adapter's folder of `spectra finetune`.
    out
        The folder to write.
    dtype
        What weights are stored as; as the factors are by default.
    compressed
        Of an adapter: leave low-rank layers low-rank.
    shard_bytes
        Largest shard.
    progress
        Called with a stage, what is done of it, and of how many.

    Raises
    ------
    InputError
        When it is no compressed checkpoint, or damaged; when the folder holds something else, or
        another process writes to it.
    """
    source = Source.of(checkpoint)
    with writing(Path(out)):
        if source.adapter is not None:
            return _with_adapter(source, Path(out), dtype, compressed, shard_bytes)
        if compressed:
            raise InputError(
                f"{checkpoint} is no adapter: nothing to merge that would stay compressed"
            )
        return _dense(source, Path(out), dtype, shard_bytes, progress)


def _dense(
    source: Source,
    out: Path,
    dtype: str | None,
    shard_bytes: int,
    progress: Progress,
) -> Merged:
    """Products in the place of factors, shard by shard."""
    opened = source.checkpoint
    if not is_compressed(opened.config):
        raise InputError(f"{source} is no compressed checkpoint: nothing to merge")
    if opened.problems:
        raise InputError("; ".join(opened.problems))
    described = SpectraConfig.of(opened.config)
    wide = None if dtype is None else require_dtype(dtype)

    def make(name: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        tensor = opened.source.read(name)
        require_finite(opened.name, [(name, tensor)])
        return {name: rounded(name, tensor, wide if tensor.is_floating_point() else None)}, {}

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


def _with_adapter(
    source: Source,
    out: Path,
    dtype: str | None,
    compressed: bool,
    shard_bytes: int,
) -> Merged:
    """The base of an adapter with the adapter in it; the model is in memory."""
    adapter = source.adapter
    assert adapter is not None
    stored = getattr(source.config, "dtype", None) or torch.float32
    target = stored if dtype is None else require_dtype(dtype)
    model: Any = load_whole(source).model  # in float32, to be rounded once
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
        source.base.copy_companions(partial)
        for name in COMPANIONS:  # the tokenizer that it was finetuned with
            if (Path(source.address) / name).is_file():
                shutil.copyfile(Path(source.address) / name, partial / name)
        config = json.loads((partial / "config.json").read_text())
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

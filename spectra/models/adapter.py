"""Adapters: what finetuning changed in a checkpoint, in a folder of its own.

``adapter.json`` names the base checkpoint by address and by the hash of its content. The changed
tensors are in ``changed.safetensors`` under the model's names or, for an adapter of `peft`, in the
files that `peft` writes. An adapter's folder can be loaded wherever a checkpoint can.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from spectra.checkpoint.adapter import FILE, PEFT_FILES, TENSORS, Adapter, adapter_of
from spectra.checkpoint.digests import combined_sha256, digest
from spectra.models.pairs import pair, unpair
from spectra.models.source import Source
from spectra.store.weights import share, write_weights
from spectra_data.errors import InputError, first_line


def require_base(source: Source) -> None:
    """Require that the base of an adapter is still at its address, and unchanged.

    Raises
    ------
    InputError
        When the base is missing or changed.
    """
    adapter = source.adapter
    assert adapter is not None
    try:
        found = source.base.checkpoint
    except InputError as error:
        raise InputError(
            f"the base of the adapter {source} has moved: {error}; put it back, or write its new "
            f"address as base into {Path(source.address, FILE)}"
        ) from error
    if found.identity != adapter.identity and source.base.content != adapter.content:
        raise InputError(
            f"{adapter.base} is no longer the checkpoint that {source} was finetuned from"
        )


def save_changed(
    folder: Path, base: str, identity: str, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write the changed tensors of a model, under the model's names."""
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_weights(folder / TENSORS, stored, {"format": "pt"})
    _describe(folder, Adapter(base, identity, "changed", _sha256(stored)))


def save_peft(folder: Path, base: str, identity: str, model: Any) -> None:
    """Write the adapter of a `peft` model over paired layers."""
    model.save_pretrained(folder)
    share(folder)
    _describe(folder, Adapter(base, identity, "peft", _files_sha256(folder)))


def apply_adapter(model: torch.nn.Module, folder: str | Path) -> torch.nn.Module:
    """Apply an adapter to its base checkpoint's model.

    Parameters
    ----------
    model
        Model of the base, as `from_pretrained` returns it.
    folder
        Folder of the adapter.

    Returns
    -------
    The model, changed; low-rank layers stay low-rank layers.

    Raises
    ------
    InputError
        When the adapter is damaged or belongs to another model, or `peft` is missing.
    """
    adapter = adapter_of(str(folder))
    if adapter is None:
        raise InputError(f"{folder} is not an adapter: it holds no {FILE}")
    if adapter.kind == "peft":
        if _files_sha256(Path(folder)) != adapter.sha256:
            raise InputError(f"the adapter in {folder} is damaged: it is not what was written")
        return _merged(model, Path(folder))
    try:
        tensors = load_file(Path(folder) / TENSORS)
    except Exception as error:  # from the disk or safetensors
        raise InputError(f"cannot read {folder}/{TENSORS}: {error}") from error
    if _sha256(tensors) != adapter.sha256:
        raise InputError(f"{folder}/{TENSORS} is damaged: it is not what was written")
    own = model.state_dict()
    wrong = [k for k, v in tensors.items() if k not in own or own[k].shape != v.shape]
    if wrong:
        raise InputError(f"{folder} is for another model: this one has no {wrong[0]} of that shape")
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
    return model


def require_peft() -> Any:
    """The package `peft`.

    Raises
    ------
    InputError
        When it is not installed, with the command that installs it.
    """
    try:
        import peft
    except ImportError as error:
        raise InputError("adapters need peft: pip install 'spectra-dynamics[peft]'") from error
    # peft still uses the old name in transformers
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", module="transformers")
    return peft


def _merged(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    peft = require_peft()
    pair(model)
    try:
        adapted = peft.PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # of many kinds, depending on the method
        reason = first_line(error)
        raise InputError(f"{folder} is not an adapter of this model: {reason}") from error
    merged: torch.nn.Module = adapted.merge_and_unload()
    unpair(merged)
    return merged


def _describe(folder: Path, adapter: Adapter) -> None:
    if Path(adapter.base).exists():
        adapter = replace(
            adapter,
            content=Source(adapter.base).content or "",
            beside=os.path.relpath(adapter.base, folder.resolve()),
        )
    (folder / FILE).write_text(json.dumps(asdict(adapter), indent=2), "utf-8")


def _files_sha256(folder: Path) -> str:
    known = hashlib.sha256()
    for name in PEFT_FILES:
        file = folder / name
        known.update(file.read_bytes() if file.is_file() else b"")
    return known.hexdigest()


def _sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    return combined_sha256({name: digest(value) for name, value in tensors.items()})

"""How a model is loaded: whole, or block by block where memory does not hold it."""

from typing import Any, Literal

import torch
from rich.filesize import decimal

from spectra.checkpoint.checkpoint import Tensors
from spectra.checkpoint.compressed import MergedTensors
from spectra.checkpoint.notes import note
from spectra.machine.devices import AUTO
from spectra.machine.memory import free_memory
from spectra.models.loading import load_skeleton, load_whole
from spectra.models.source import Source
from spectra.models.streamed import streamed
from spectra_data.errors import InputError

Loading = Literal["auto", "whole", "blocks"]
ROOM = 0.8
"""Share of the free memory that weights may take; the rest is for what they compute."""


def placed_model(
    source: Source,
    dtype: torch.dtype | None = torch.float32,
    device: str = "cpu",
    loading: Loading = "auto",
) -> Any:
    """A checkpoint's model, in evaluation mode.

    Parameters
    ----------
    source
        Checkpoint.
    dtype
        Precision of its weights; None for the stored one.
    device
        Device; ``auto`` is all devices together, with the disk for what does not fit.
    loading
        ``whole``; ``blocks``, each of which is read when it runs; or ``auto``: whole, if that fits
        into the memory that is free, and a line says if it does not.

    Raises
    ------
    InputError
        When the checkpoint cannot be loaded, or not block by block.
    """
    precision = source.dtype if dtype is None else dtype
    lacking = _lacking(source, precision, device) if loading == "auto" else None
    if loading == "blocks" or lacking is not None:
        skeleton = None if device == AUTO else load_skeleton(source, precision)
        if skeleton is not None:
            if lacking is not None:
                note(f"{source} {lacking}: its blocks are read one at a time")
            return streamed(skeleton, device)
        if loading == "blocks":
            raise InputError(
                f"{source} can only be loaded whole: its tensors are not its model's parameters"
            )
        note(f"{source} {lacking}, but it can only be loaded whole")
    where = {} if device == "cpu" else {"device_map": device}
    return load_whole(source, AUTO if dtype is None else dtype, **where).model.eval()


def fits(source: Source, dtype: torch.dtype, device: str = "cpu") -> bool:
    """Whether a model's weights fit into a device's free memory."""
    return _lacking(source, dtype, device) is None


def _lacking(source: Source, dtype: torch.dtype, device: str) -> str | None:
    """By how much a model's weights do not fit into a device's free memory; None if they do."""
    if device == AUTO or source.is_left_to_transformers:
        return None
    tensors: Tensors = source.checkpoint.source
    if isinstance(tensors, MergedTensors):
        tensors = tensors.source
    numbers = sum(torch.Size(stored.shape).numel() for stored in tensors.tensors.values())
    needed, free = numbers * dtype.itemsize, free_memory(torch.device(device))
    if needed <= ROOM * free:
        return None
    name = str(dtype).removeprefix("torch.")
    return f"takes {decimal(needed)} in {name}, and {decimal(free)} are free"

"""A model to evaluate: any checkpoint that transformers loads, compressed ones included."""

from typing import Any

import torch

from spectra.compression.sources import require_dtype
from spectra.models.loading import load_whole
from spectra.models.source import Source


def load_model(named: str | Source, dtype: str = "float32", device: str = "cpu") -> Any:
    """A checkpoint's model, in evaluation mode.

    Parameters
    ----------
    named
        Checkpoint: a folder, a GGUF file, or a hub name.
    dtype
        Precision to compute in; ``auto`` is the stored one.
    device
        Device; ``auto`` is all devices together, with the disk for what does not fit.

    Raises
    ------
    InputError
        When the checkpoint cannot be loaded.
    """
    precision: torch.dtype | str = dtype if dtype == "auto" else require_dtype(dtype)
    where = {} if device == "cpu" else {"device_map": device}
    return load_whole(named, precision, **where).model.eval()

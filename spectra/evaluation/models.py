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
        A folder, a GGUF file, or a hub name.
    dtype
        What to compute in, or ``auto``: as it is stored.
    device
        One device, or ``auto``: all there are, with the disk for what does not fit.

    Raises
    ------
    InputError
        When it cannot be loaded.
    """
    precision: torch.dtype | str = dtype if dtype == "auto" else require_dtype(dtype)
    where = {} if device == "cpu" else {"device_map": device}
    return load_whole(named, precision, **where).model.eval()

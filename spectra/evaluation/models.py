"""A model to evaluate: any checkpoint that transformers loads, compressed ones included."""

from typing import Any

from spectra.compression.sources import require_dtype
from spectra.machine.devices import AUTO
from spectra.models.placement import Loading, placed_model
from spectra.models.source import Source


def load_model(
    named: str | Source,
    dtype: str = "float32",
    device: str = "cpu",
    loading: Loading = "whole",
) -> Any:
    """A checkpoint's model, in evaluation mode.

    Parameters
    ----------
    named
        Checkpoint: a folder, a GGUF file, or a hub name.
    dtype
        Precision to compute in; ``auto`` is the stored one.
    device, loading
        See `placed_model`.

    Raises
    ------
    InputError
        When the checkpoint cannot be loaded, or not block by block.
    """
    precision = None if dtype == AUTO else require_dtype(dtype)
    return placed_model(Source.of(named), precision, device, loading)

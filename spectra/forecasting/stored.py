"""What lies in the files of a checkpoint."""

import torch

from spectra.checkpoint.checkpoint import Tensors
from spectra.checkpoint.compressed import MergedTensors
from spectra.models.source import Source


def stored_tensors(source: Source) -> Tensors:
    """The tensors of a checkpoint as they are read: of a compressed one, the factors."""
    tensors = source.checkpoint.source
    return tensors.source if isinstance(tensors, MergedTensors) else tensors


def stored_bytes(tensors: Tensors) -> int:
    """Bytes of tensors when they are read."""
    stored = tensors.tensors.values()
    return sum(torch.Size(tensor.shape).numel() * tensor.width for tensor in stored)

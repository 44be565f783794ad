"""Hashes of weights."""

import hashlib
from collections.abc import Mapping

import torch


def digest(weight: torch.Tensor) -> bytes:
    """SHA-256 of a weight's dtype, shape and bytes: 32 bytes."""
    weight = weight.detach().cpu().contiguous()
    header = f"{str(weight.dtype).removeprefix('torch.')} {tuple(weight.shape)} "
    known = hashlib.sha256(header.encode())
    known.update(weight.flatten().view(torch.uint8).numpy().data)
    return known.digest()


def combined_sha256(digests: Mapping[str, bytes]) -> str:
    """One hash for a checkpoint, from its matrices' names and hashes: hexadecimal.

    It does not depend on how the checkpoint is cut into files, nor on tensors that are no matrix.
    """
    known = hashlib.sha256()
    for name in sorted(digests):
        known.update(name.encode() + b"\0" + digests[name])
    return known.hexdigest()

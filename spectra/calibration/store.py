"""Files in the cache of calibration, which takes minutes: decompositions, and own text.

Files are identified by everything that they depend on, and hold a hash of their content, which is
checked on every read.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from spectra.checkpoint.digests import combined_sha256, digest
from spectra.store.durable import replacing
from spectra.store.weights import write_weights
from spectra_data.cache import discard
from spectra_data.partial import remove_leftovers

Tensors = dict[str, torch.Tensor]
About = dict[str, str]


def save_tensors(path: Path, tensors: Tensors, about: Mapping[str, str]) -> None:
    """Write tensors and metadata to the cache; a killed process leaves no partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    with replacing(path) as partial:
        write_weights(partial, tensors, {**about, "sha256": _sha256(path, tensors, about)})


def load_tensors(path: Path) -> tuple[Tensors, About] | None:
    """Tensors and metadata from the cache; None if there are none.

    A damaged file is removed, and a line on stderr says so.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.pop("sha256") != _sha256(path, tensors, about):
            raise ValueError("it is not what was saved")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        discard(path, error)
        return None
    return tensors, about


def _sha256(path: Path, tensors: Tensors, about: Mapping[str, str]) -> str:
    """Hash of the content, and of the file's name, which identifies its inputs."""
    digests = {name: digest(value) for name, value in tensors.items()}
    text = json.dumps([path.parts[-2:], combined_sha256(digests), dict(about)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

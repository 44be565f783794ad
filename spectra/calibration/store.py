"""The cache of calibration, which takes minutes: statistics, a file per block, and own text.

Files are identified by everything that they depend on, and hold a hash of their content, which is
checked on every read.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from spectra.calibration.statistics import BlockStatistics, Moments
from spectra.checkpoint.digests import combined_sha256, digest
from spectra.store.durable import replacing
from spectra.store.weights import write_weights
from spectra_data.cache import cache_folder, discard
from spectra_data.errors import InputError
from spectra_data.partial import remove_leftovers

FORMAT = 2

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


class StatisticsFolder:
    """The statistics of one model on one text.

    Parameters
    ----------
    described
        Checkpoint, tokens and settings: everything that the statistics depend on.
    """

    def __init__(self, described: Mapping[str, Any]) -> None:
        text = json.dumps({"format": FORMAT, **described}, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.path = cache_folder("calibration", self.key)

    def save(self, block: str, statistics: BlockStatistics) -> None:
        """Write the statistics of a block."""
        tensors: Tensors = {}
        moments = {f"input.{group}": m for group, m in statistics.inputs.items()}
        moments |= {f"gradient.{name}": m for name, m in statistics.gradients.items()}
        for name, m in moments.items():
            tensors |= {f"{name}.second": m.second, f"{name}.absolute": m.absolute}
        about = {
            "groups": json.dumps(statistics.groups),
            "counts": json.dumps({name: m.count for name, m in moments.items()}),
        }
        save_tensors(self._file(block), tensors, about)

    def find(self, block: str) -> BlockStatistics | None:
        """The statistics of a block; None if they are missing or damaged."""
        kept = load_tensors(self._file(block))
        if kept is None:
            return None
        tensors, about = kept
        counts: dict[str, int] = json.loads(about["counts"])
        found = BlockStatistics(groups=json.loads(about["groups"]))
        for name, count in counts.items():
            m = Moments(tensors[f"{name}.second"], tensors[f"{name}.absolute"], count)
            kind, _, key = name.partition(".")
            if kind == "input":
                found.inputs[int(key)] = m
            else:
                found.gradients[key] = m
        return found

    def intact(self, block: str) -> bool:
        """Whether the statistics of a block are present and undamaged."""
        found = self.find(block)
        return found is not None and bool(found.groups)

    def load(self, block: str) -> BlockStatistics:
        """The statistics of a block.

        Raises
        ------
        InputError
            When they are missing or damaged.
        """
        found = self.find(block)
        if found is None:
            raise InputError(f"{self._file(block)} was lost: repeat the command")
        return found

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.path.glob("*.safetensors"))

    def _file(self, block: str) -> Path:
        return self.path / f"{block}.safetensors"

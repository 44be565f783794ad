"""Statistics of a calibration on disk, a file a block, known by everything that they depend on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data.cache import cache_folder
from spectra.calibration.statistics import BlockStatistics, Moments

FORMAT = 1


class StatisticsFolder:
    """The statistics of one model on one text.

    Parameters
    ----------
    described
        Checkpoint, tokens, settings: all that the statistics are a function of.
    """

    def __init__(self, described: Mapping[str, Any]) -> None:
        text = json.dumps({"format": FORMAT, **described}, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.path = cache_folder("calibration", self.key)

    def holds(self, block: str) -> bool:
        """Whether a block's statistics are there."""
        return self._file(block).exists()

    def save(self, block: str, statistics: BlockStatistics) -> None:
        """Keep a block's statistics; a killed process leaves whole files only."""
        self.path.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, torch.Tensor] = {}
        moments = {f"input.{group}": m for group, m in statistics.inputs.items()}
        moments |= {f"gradient.{name}": m for name, m in statistics.gradients.items()}
        for name, m in moments.items():
            tensors |= {f"{name}.second": m.second, f"{name}.absolute": m.absolute}
        about = {
            "groups": json.dumps(statistics.groups),
            "counts": json.dumps({name: m.count for name, m in moments.items()}),
        }
        partial = self._file(block).with_suffix(".partial")
        save_file(tensors, partial, metadata=about)
        partial.replace(self._file(block))

    def load(self, block: str) -> BlockStatistics:
        """A block's statistics, as they were saved."""
        with safe_open(self._file(block), framework="pt") as file:
            about = file.metadata()
            counts: dict[str, int] = json.loads(about["counts"])
            found = BlockStatistics(groups=json.loads(about["groups"]))
            for name, count in counts.items():
                second = file.get_tensor(f"{name}.second")
                m = Moments(second, file.get_tensor(f"{name}.absolute"), count)
                kind, _, key = name.partition(".")
                if kind == "input":
                    found.inputs[int(key)] = m
                else:
                    found.gradients[key] = m
        return found

    def intact(self, block: str) -> bool:
        """Whether a block's file is there and can be read."""
        try:
            return self.holds(block) and bool(self.load(block).groups)
        except (SafetensorError, OSError, ValueError, KeyError):
            return False

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(file.stat().st_size for file in self.path.glob("*.safetensors"))

    def _file(self, block: str) -> Path:
        return self.path / f"{block}.safetensors"

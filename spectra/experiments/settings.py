"""What an experiment is run with; every field is an option of the command, and is written down."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from spectra.compression.settings import SELF, Calibration
from spectra.compression.sources import require_dtype
from spectra.pruning.pruner import METHODS
from spectra_data.errors import InputError
from spectra_data.sources import open_source


@dataclass(frozen=True)
class Settings:
    """An experiment's settings."""

    data: str = "pydocs"
    """Text to evaluate on: a file or folder, pydocs, c4, hf:NAME. The paper's is c4."""
    calibration: str = "self"
    """Text to calibrate on: a data source, or self: what the model itself writes."""
    seq_len: int = 512
    """Tokens of a window, of both."""
    windows: int = 32
    """Windows to evaluate on."""
    calibration_windows: int = 64
    """Windows to calibrate on."""
    errs: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    """Of tables 1 and 2: effective rank reductions."""
    budgets: tuple[float, ...] = (0.9, 0.8, 0.6)
    """Of `quality`: fractions of block parameters."""
    memory_errs: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7)
    """Of table 3."""
    contexts: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Of table 3: context lengths."""
    pruned_errs: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5)
    """Of figure 7; at 0 everything is pruned."""
    sparsities: tuple[float, ...] = (0.2, 0.4, 0.5, 0.6)
    """Of figure 7."""
    pruners: tuple[str, ...] = ("magnitude", "wanda", "sparsegpt")
    """Of figure 7."""
    stored: str = "bfloat16"
    """What compressed weights are rounded to."""
    batch_size: int = 4
    """Windows at a time."""
    seed: int = 0
    """Of all that is drawn."""

    def calibrated(self, data: str | None = None) -> Calibration:
        """The calibration that they ask for, or the same on other text."""
        return Calibration(
            self.calibration if data is None else data,
            self.calibration_windows,
            self.seq_len,
            self.seed,
            None,
            self.batch_size,
        )

    def __post_init__(self) -> None:
        unknown = [name for name in self.pruners if name not in METHODS]
        if unknown:
            raise InputError(f"no pruner {unknown[0]!r}; there are: {', '.join(METHODS)}")
        for name in ("seq_len", "windows", "calibration_windows", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is at least 1, not {getattr(self, name)}")
        require_dtype(self.stored)

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the texts, so that results are known by what they were measured on."""
        named = {"data": self.data, "calibration": self.calibration}
        return {k: open_source(v).fingerprint() for k, v in named.items() if v != SELF}

    def to_dict(self) -> dict[str, Any]:
        """For the written configuration."""
        return dataclasses.asdict(self)

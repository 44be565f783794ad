"""Options that several experiments have; an experiment's own derive from those that it uses."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from spectra.calibration.options import SELF, Calibration
from spectra.compression.sources import require_dtype
from spectra_data.errors import InputError
from spectra_data.sources import open_source

Check = tuple[bool, str]
"""Whether something is wrong, and what."""


@dataclass(frozen=True)
class Settings:
    """What results depend on: every field is an option of the command, and is written down.

    A derived class adds its checks and texts to those of `super`, so that classes combine.

    Raises
    ------
    InputError
        With everything that is wrong.
    """

    def __post_init__(self) -> None:
        problems = [message for wrong, message in self.checks() if wrong]
        if problems:
            raise InputError("; ".join(problems))

    def checks(self) -> list[Check]:
        """What they must hold."""
        return []

    def texts(self) -> dict[str, str]:
        """The data sources that are read, by option."""
        return {}

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the texts, so that results are known by what they were measured on."""
        return {k: open_source(v).fingerprint() for k, v in self.texts().items()}

    def to_dict(self) -> dict[str, Any]:
        """For the written configuration."""
        return dataclasses.asdict(self)

    def at_least_one(self, *names: str) -> list[Check]:
        """Checks of counts."""
        values = {name: getattr(self, name) for name in names}
        return [(v < 1, f"{option(k)} is at least 1, not {v}") for k, v in values.items()]


@dataclass(frozen=True)
class WindowSettings(Settings):
    """Windows of tokens."""

    seq_len: int = 512
    """Tokens of a window."""

    def checks(self) -> list[Check]:
        """What they must hold."""
        return [*super().checks(), *self.at_least_one("seq_len")]


@dataclass(frozen=True)
class DataSettings(WindowSettings):
    """Text."""

    data: str = "pydocs"
    """Text to evaluate on: a file or folder, pydocs, c4, hf:NAME. The paper's is c4."""

    def texts(self) -> dict[str, str]:
        """The data sources that are read, by option."""
        return super().texts() | {"data": self.data}


@dataclass(frozen=True)
class CalibrationSettings(WindowSettings):
    """What statistics of activations are taken on."""

    calibration: str = SELF
    """Text to calibrate on: a data source, or self: what the model itself writes."""
    calibration_windows: int = 64
    """Windows to calibrate on."""
    batch_size: int = 4
    """Windows at a time."""
    seed: int = 0
    """Seed of all that is drawn."""

    def checks(self) -> list[Check]:
        """What they must hold."""
        return [*super().checks(), *self.at_least_one("calibration_windows", "batch_size")]

    def texts(self) -> dict[str, str]:
        """The data sources that are read, by option."""
        read = {} if self.calibration == SELF else {"calibration": self.calibration}
        return super().texts() | read

    def calibrated(self, data: str | None = None) -> Calibration:
        """The calibration that they ask for, or the same on other text."""
        return Calibration(
            self.calibration if data is None else data,
            windows=self.calibration_windows,
            length=self.seq_len,
            seed=self.seed,
            batch_size=self.batch_size,
        )


@dataclass(frozen=True)
class StorageSettings(Settings):
    """How compressed weights are stored."""

    stored: str = "bfloat16"
    """Precision that compressed weights are rounded to."""

    def checks(self) -> list[Check]:
        """What they must hold.

        Raises
        ------
        InputError
            When there is no such precision.
        """
        require_dtype(self.stored)
        return super().checks()


@dataclass(frozen=True)
class PerplexitySettings(StorageSettings, CalibrationSettings, DataSettings):
    """Perplexity of a model whose matrices are replaced."""

    windows: int = 32
    """Windows to evaluate on."""

    def checks(self) -> list[Check]:
        """What they must hold."""
        return [*super().checks(), *self.at_least_one("windows")]


def option(field: str) -> str:
    """A field as it is typed."""
    return f"--{field.replace('_', '-')}"

"""Options that several experiments share; an experiment's settings derive from those it uses."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from spectra.calibration.options import SELF, Calibration, without_usual_field
from spectra.compression.settings import require_known_dtype
from spectra_data.documents import DocumentSource
from spectra_data.errors import InputError
from spectra_data.sources import TEXT_FIELD, open_source

Check = tuple[bool, str]
"""Whether something is wrong, and the message that says what."""


@dataclass(frozen=True)
class Settings:
    """Settings that results depend on: each field is a command option, and saved with the results.

    A derived class adds its checks and texts to those of `super`, so that classes combine.

    Raises
    ------
    InputError
        With all problems.
    """

    def __post_init__(self) -> None:
        problems = [message for wrong, message in self.checks() if wrong]
        if problems:
            raise InputError("; ".join(problems))

    def checks(self) -> list[Check]:
        """Checks of the settings."""
        return []

    def texts(self) -> dict[str, str]:
        """Data sources that the experiment reads, by option."""
        return {}

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the texts, to identify the data that results were measured on."""
        return {k: self.opened(v).fingerprint() for k, v in self.texts().items()}

    def opened(self, data: str) -> DocumentSource:
        """A text of the experiment."""
        return open_source(data)

    def to_dict(self) -> dict[str, Any]:
        """Settings for the written configuration."""
        return without_usual_field(dataclasses.asdict(self))

    def at_least_one(self, *names: str) -> list[Check]:
        """Checks of counts."""
        values = {name: getattr(self, name) for name in names}
        return [(v < 1, f"{option(k)} is at least 1, not {v}") for k, v in values.items()]


@dataclass(frozen=True)
class WindowSettings(Settings):
    """Token windows of texts."""

    seq_len: int = 512
    """Tokens per window."""
    text_field: str = TEXT_FIELD
    """Field or column that holds the text, in every text that has any."""

    def opened(self, data: str) -> DocumentSource:
        """A text of the experiment."""
        return open_source(data, self.text_field)

    def checks(self) -> list[Check]:
        """Checks of the settings."""
        return [*super().checks(), *self.at_least_one("seq_len")]


@dataclass(frozen=True)
class DataSettings(WindowSettings):
    """Text to evaluate on."""

    data: str = "pydocs"
    """Text to evaluate on: a file or folder, pydocs, c4, hf:NAME. The paper's is c4."""

    def texts(self) -> dict[str, str]:
        """Data sources that the experiment reads, by option."""
        return super().texts() | {"data": self.data}


@dataclass(frozen=True)
class CalibrationSettings(WindowSettings):
    """Text on which statistics of activations are measured."""

    calibration: str = SELF
    """Text to calibrate on: a data source, or self for text that the model itself writes."""
    calibration_windows: int = 64
    """Number of windows to calibrate on."""
    batch_size: int = 4
    """Windows per batch."""
    seed: int = 0
    """Seed of all random draws."""

    def checks(self) -> list[Check]:
        """Checks of the settings."""
        return [*super().checks(), *self.at_least_one("calibration_windows", "batch_size")]

    def texts(self) -> dict[str, str]:
        """Data sources that the experiment reads, by option."""
        read = {} if self.calibration == SELF else {"calibration": self.calibration}
        return super().texts() | read

    def calibrated(self, data: str | None = None) -> Calibration:
        """Calibration of these settings, on `data` if it is given."""
        text = self.calibration if data is None else data
        return Calibration(
            text,
            windows=self.calibration_windows,
            length=self.seq_len,
            seed=self.seed,
            batch_size=self.batch_size,
            text_field=TEXT_FIELD if text == SELF else self.text_field,
        )


@dataclass(frozen=True)
class StorageSettings(Settings):
    """Storage of compressed weights."""

    stored: str = "bfloat16"
    """Precision of the stored compressed weights."""

    def checks(self) -> list[Check]:
        """Checks of the settings.

        Raises
        ------
        InputError
            When there is no such precision.
        """
        require_known_dtype(self.stored)
        return super().checks()


@dataclass(frozen=True)
class PerplexitySettings(StorageSettings, CalibrationSettings, DataSettings):
    """Evaluation of the perplexity of a model whose matrices are replaced."""

    windows: int = 32
    """Number of windows to evaluate on."""

    def checks(self) -> list[Check]:
        """Checks of the settings."""
        return [*super().checks(), *self.at_least_one("windows")]


def option(field: str) -> str:
    """A field as typed on the command line."""
    return f"--{field.replace('_', '-')}"

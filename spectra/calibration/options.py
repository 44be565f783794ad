"""Options of calibration text, for the library and the commands."""

from dataclasses import dataclass
from typing import Annotated

from spectra.keywords import named
from spectra_data.errors import InputError

SELF = "self"
"""Data source for calibration on text that the model itself writes."""


@dataclass(frozen=True)
class Calibration:
    """The text on which statistics are taken.

    Parameters
    ----------
    data
        Text to calibrate on: a data source (a file or folder, pydocs, c4, hf:NAME), or self: text
        that the model itself writes, which needs no data.
    windows
        Number of windows of calibration text.
    length
        Tokens per window.
    seed
        Seed of the model's own text, and of the tokens that are drawn for the gradients of fisher.
    tokenizer
        Tokenizer of the calibration text; the checkpoint's own by default.
    batch_size
        Number of calibration windows at a time.

    Raises
    ------
    InputError
        When a count is below 1.
    """

    data: Annotated[str, named("calibration")] = SELF
    windows: int = 64
    length: Annotated[int, named("seq-len")] = 512
    seed: int = 0
    tokenizer: str | None = None
    batch_size: int = 4

    def __post_init__(self) -> None:
        for name in ("windows", "length", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"calibration: {name} is at least 1, not {getattr(self, name)}")

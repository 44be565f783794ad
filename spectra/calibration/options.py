"""Options of calibration text, for the library and the commands."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from spectra.keywords import named
from spectra_data.errors import InputError
from spectra_data.sources import TEXT_FIELD

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
    text_field
        Field or column of the data that holds the text.
    own_text_hours
        Hours that the model may write its own text for; if that would take longer, by its first
        tokens, it is calibrated on pydocs, and a line says so.

    Raises
    ------
    InputError
        When a count is below 1, hours are below 0, or the model's own text is said to have fields.
    """

    data: Annotated[str, named("calibration")] = SELF
    windows: int = 64
    length: Annotated[int, named("seq-len")] = 512
    seed: int = 0
    tokenizer: str | None = None
    batch_size: int = 4
    text_field: str = TEXT_FIELD
    own_text_hours: float = 6.0

    def __post_init__(self) -> None:
        for name in ("windows", "length", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"calibration: {name} is at least 1, not {getattr(self, name)}")
        if not self.own_text_hours >= 0:
            raise InputError(f"calibration: hours are at least 0, not {self.own_text_hours:g}")
        if self.data == SELF and self.text_field != TEXT_FIELD:
            raise InputError("calibration: a text field goes with a text, and none is named")

    def described(self) -> dict[str, Any]:
        """The options as JSON, for metadata and keys; without what earlier versions did not have.

        So what they calibrated stays valid.
        """
        known = dataclasses.asdict(self)
        del known["own_text_hours"]  # which does not change a text
        return without_usual_field(known)


def without_usual_field(options: dict[str, Any]) -> dict[str, Any]:
    """Options, without ``text_field`` if it is the default."""
    return {k: v for k, v in options.items() if (k, v) != ("text_field", TEXT_FIELD)}

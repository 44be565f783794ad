"""How a checkpoint is compressed: the method, what it is calibrated on, how factors are stored."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from spectra_data.errors import InputError

Method = Literal["svd", "asvd", "whiten", "fisher", "sequential"]
METHODS: tuple[str, ...] = get_args(Method)
SELF = "self"
"""Calibration on text that the model itself writes."""
SHRINKAGE = {"fisher": 0.01}
"""Of covariances towards the identity, by method; none elsewhere."""


@dataclass(frozen=True)
class Calibration:
    """The text that statistics are taken on.

    Raises
    ------
    InputError
        When there would be no token of it.
    """

    data: str = SELF
    """A data source, or ``self``: text that the model itself writes, which needs no data."""
    windows: int = 64
    length: int = 512
    seed: int = 0
    """Of what is drawn: the model's own text, the tokens of ``fisher``'s gradients."""
    tokenizer: str | None = None
    """The checkpoint's own by default."""
    batch_size: int = 4
    """Windows at a time."""

    def __post_init__(self) -> None:
        for name in ("windows", "length", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"calibration: {name} is at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Settings:
    """A compression's settings.

    Raises
    ------
    InputError
        When there is no such method.
    """

    method: str = "svd"
    calibration: Calibration = Calibration()
    shrinkage: float | None = None
    """Of covariances towards the identity, from 0 to 1; the method's own where it is None."""
    asvd_exponent: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"no method {self.method!r}; there are: {', '.join(METHODS)}")
        if not 0 <= self.shrink < 1:
            raise InputError(f"shrinkage is from 0 to below 1, not {self.shrinkage}")

    @property
    def calibrated(self) -> bool:
        """Whether the method needs text."""
        return self.method != "svd"

    @property
    def shrink(self) -> float:
        """Shrinkage, resolved."""
        return SHRINKAGE.get(self.method, 0.0) if self.shrinkage is None else self.shrinkage

    def described(self) -> dict[str, Any]:
        """For metadata and keys."""
        about: dict[str, Any] = {"method": self.method}
        if self.method == "asvd":
            about["exponent"] = self.asvd_exponent
        if self.calibrated:
            about |= {"shrinkage": self.shrink, "calibration": dataclasses.asdict(self.calibration)}
        return about

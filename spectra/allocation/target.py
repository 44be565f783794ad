"""The target of an allocation: one value, from the user to the map."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from spectra.keywords import Share
from spectra_data.errors import InputError


@dataclass(frozen=True)
class TargetKind:
    """A kind of number that an allocation can aim at."""

    noun: str
    """Name of the kind, with its article."""
    meaning: str
    """Definition, without a full stop."""

    @property
    def label(self) -> str:
        """The noun alone."""
        return self.noun.partition(" ")[2]


KINDS: Mapping[str, TargetKind] = {
    "err": TargetKind("an ERR", "removed ranks over all ranks"),
    "budget": TargetKind("a budget", "the fraction of block parameters to stay within"),
    "threshold": TargetKind("a threshold", "WeLore's cut on normalised singular values"),
}
TARGETS: tuple[str, ...] = tuple(KINDS)


@dataclass(frozen=True)
class Target:
    """An ERR, a budget or a threshold.

    Raises
    ------
    InputError
        When there is no such kind, or the value is not a number from 0 to 1.
    """

    kind: str
    """One of `TARGETS`."""
    value: float
    """Value, from 0 to 1."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"no target {self.kind!r}; there are: {', '.join(TARGETS)}")
        if not 0 <= self.value <= 1:  # also catches NaN
            raise _beyond(self.kind, f"{self.value:g}")

    @classmethod
    def of(cls, **given: float | None) -> Self:
        """The one target among keywords; the others are None.

        Raises
        ------
        InputError
            When none or several are given, or the value is out of range.
        """
        named = [(kind, value) for kind, value in given.items() if value is not None]
        if len(named) != 1:
            *first, last = (kind.noun for kind in KINDS.values())
            raise InputError(f"name one target: {', '.join(first)}, or {last}")
        kind, value = named[0]
        return cls(kind, float(value))

    @classmethod
    def read(cls, kind: str, text: str) -> Self:
        """A target with its value parsed from text.

        Raises
        ------
        InputError
            When the text is not a number from 0 to 1.
        """
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if kind in KINDS and not 0 <= value <= 1:
            raise _beyond(kind, repr(text))
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{KINDS[self.kind].noun} of {self.value:g}"

    def asked(self) -> dict[str, float | None]:
        """The target as in a map: the value under its kind, None under the others."""
        return dict.fromkeys(TARGETS) | {self.kind: self.value}

    def unreachable(self, what: str, least: float, most: float = 1.0) -> InputError:
        """The error that states the possible range, after what allows it, e.g. ``ranks allow``."""
        return InputError(
            f"{self} cannot be reached: {what} {_short(least, up=True)} to {_short(most)}"
        )


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """One field per kind of target; exactly one of them is set.

    Parameters
    ----------
    err
        Effective rank reduction to reach: removed ranks over all ranks, e.g. 0.5.
    budget
        Fraction of block parameters to stay within, e.g. 0.8.
    threshold
        WeLore's cut on normalised singular values, e.g. 0.175.
    """

    err: Share | None = None
    budget: Share | None = None
    threshold: Share | None = None

    @property
    def target(self) -> Target:
        """The one target that is set.

        Raises
        ------
        InputError
            When none or several are set, or the value is out of range.
        """
        return Target.of(**{kind: getattr(self, kind) for kind in TARGETS})


def _beyond(kind: str, shown: str) -> InputError:
    noun = KINDS[kind].noun
    return InputError(f"the target cannot be reached: {noun} is a number from 0 to 1, not {shown}")


def _short(number: float, *, up: bool = False) -> str:
    """A bound with four digits, rounded into the range that it bounds."""
    rounded = (math.ceil if up else math.floor)(number * 1e4) / 1e4
    return f"{rounded:.4f}" if 0 < rounded < 1 else f"{rounded:g}"

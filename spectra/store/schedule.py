"""The steps at which snapshots are taken."""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spectra_data.errors import InputError
from spectra_data.fields import converted, plain


@dataclass(frozen=True)
class Schedule:
    """Snapshots every N steps from 0, denser at first on request, or at listed steps.

    The state after the last step is always recorded if that step is known.
    """

    every: int = 500
    early: bool = False
    """Whether to add 1, 2, 4, 8, … steps, up to `every`: most of what happens, happens early."""
    at: tuple[int, ...] | None = None
    """Steps of all snapshots, instead of `every`; the last step only if it is among them."""
    steps: int | None = None
    """Number of optimizer steps; None if unknown."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"snapshots are taken every 1 or more steps, not every {self.every}")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"a run has at least 1 step, not {self.steps}")
        if self.at is not None:
            at = tuple(sorted(set(self.at)))
            if not at or at[0] < 0:
                raise InputError(f"the steps of snapshots are numbers of at least 0, not {self.at}")
            if self.steps is not None and at[-1] > self.steps:
                raise InputError(f"no snapshot at step {at[-1]}: the run has {self.steps} steps")
            object.__setattr__(self, "at", at)

    @classmethod
    def of(
        cls, every: int | Iterable[int], *, early: bool = False, steps: int | None
    ) -> "Schedule":
        """A schedule from the number of steps between snapshots, or from a list of steps."""
        if not isinstance(every, Iterable):
            return cls(operator.index(every), early, steps=steps)
        if early:
            raise InputError("early snapshots go with a number of steps, not with a list of them")
        return cls(at=tuple(int(step) for step in every), steps=steps)

    def due(self, step: int) -> bool:
        """Whether a snapshot belongs to the state after `step` optimizer steps."""
        if self.at is not None:
            return step in self.at
        power_of_two = step & (step - 1) == 0
        early = self.early and step < self.every and power_of_two
        return step % self.every == 0 or step == self.steps or early

    def between(self, first: int, last: int) -> list[int]:
        """The steps of snapshots from `first` to `last`, both included."""
        if self.at is not None:
            return [step for step in self.at if first <= step <= last]
        regular, others = self._parts(first, last)
        return sorted({*regular, *others})

    @property
    def last(self) -> int | None:
        """The step of the last snapshot; None if unknown."""
        return self.at[-1] if self.at is not None else self.steps

    @property
    def snapshots(self) -> int | None:
        """Number of snapshots; None if unknown."""
        if self.at is not None:
            return len(self.at)
        return None if self.steps is None else sum(map(len, self._parts(0, self.steps)))

    def _parts(self, first: int, last: int) -> tuple[range, set[int]]:
        """The regular snapshots from `first` to `last`, and all others."""
        regular = range(first + -first % self.every, last + 1, self.every)
        others = {1 << n for n in range(self.every.bit_length())} if self.early else set()
        if self.steps is not None:
            others.add(self.steps)
        due = {step for step in others if first <= step <= last and self.due(step)}
        return regular, {step for step in due if step not in regular}

    def to_dict(self) -> dict[str, Any]:
        return plain(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Schedule":
        """Rebuild from the result of `to_dict`.

        Raises
        ------
        InputError
            When it is not a schedule.
        """
        return converted("schedule", fields, cls)

"""At which steps a snapshot is taken."""

from dataclasses import dataclass

from data.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """Every `every` steps from 0, and after the last step where it is known."""

    every: int
    steps: int | None = None
    """How many optimizer steps there will be; None where nobody knows."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"snapshots are taken every 1 or more steps, not every {self.every}")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"a run has at least 1 step, not {self.steps}")

    def due(self, step: int) -> bool:
        """Whether a snapshot belongs to the state after `step` optimizer steps."""
        return step % self.every == 0 or step == self.steps

    @property
    def snapshots(self) -> int | None:
        """How many snapshots there will be; None where nobody knows."""
        if self.steps is None:
            return None
        return self.steps // self.every + 1 + (self.steps % self.every != 0)

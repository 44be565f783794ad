"""What is recorded, when and where: options of `record`, the callback and the commands."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from spectra.keywords import comma_list, named
from spectra.quantities import DEFAULT, QUANTITIES
from spectra.store.layout import Contents
from spectra.store.schedule import Schedule
from spectra_data.errors import InputError

Where = Literal["off", "wait", "drop"]
OFFERED = ", ".join(QUANTITIES)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What is recorded, when and where.

    Parameters
    ----------
    every
        Steps between snapshots, which begin before the first step and end after the last, 0 to
        record nothing; or the steps of all snapshots, e.g. 0,10,100.
    early
        Snapshots are taken after 1, 2, 4, 8, … steps, too, up to the steps between them.
    matrices
        Names of the matrices to record, `*` allowed, e.g. `*.mlp.*`; all by default.
    spectra
        Quantities whose singular values are recorded, e.g. weight and update, of
        `spectra.quantities.QUANTITIES`.
    gradients
        Probe gradients themselves are recorded, in bfloat16: 170 MB a snapshot of llama_130m.
    subspaces
        Rank of the leading singular subspaces of the probe gradient to record; 0 for none.
    sketch
        Components of a sketch of the probe gradient, from which cosine similarities are estimated
        to about 1/sqrt of it; 0 for none.
    overhead
        Share of the time that recording may take, e.g. 0.01: snapshots, or the parts of them that
        are worth less, are left out to stay below. What is left out depends on the machine's speed.
    background
        Process that decomposes and writes: off, the training's own, which waits; else one of its
        own, and when that is behind, training waits for it, or drops the snapshot.
    queue
        Snapshots that may wait for the background process; each takes memory for a copy of all
        matrices, for every quantity.
    strict
        Errors in recording, a full disk say, end the training; by default they end the recording,
        with a warning.
    """

    every: Annotated[
        int | str | Sequence[int],
        named("record-every", aliases=["--record-at"]),
        comma_list("STEPS"),
    ] = 500
    early: Annotated[bool, named("record-early")] = False
    matrices: Annotated[
        str | Sequence[str] | None, named("record-matrices"), comma_list("NAMES")
    ] = None
    spectra: Annotated[
        str | Sequence[str],
        named("record-spectra", help=f"Quantities whose singular values are recorded: {OFFERED}."),
        comma_list("QUANTITIES"),
    ] = DEFAULT
    gradients: Annotated[bool, named("record-gradients")] = False
    subspaces: Annotated[int, named("record-subspaces")] = 0
    sketch: int = 4096
    overhead: Annotated[float | None, named("record-overhead")] = None
    background: Annotated[Where, named("record-background")] = "off"
    queue: Annotated[int, named("record-queue")] = 1
    strict: Annotated[bool, named("record-strict")] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", _steps(self.every))
        object.__setattr__(self, "spectra", _words(self.spectra))
        object.__setattr__(self, "matrices", self.matrices and _words(self.matrices))
        if self.background is None:
            object.__setattr__(self, "background", "off")

    @property
    def wanted(self) -> bool:
        """Whether there are snapshots: not every 0 steps."""
        return self.rhythm is None or self.rhythm > 0

    @property
    def rhythm(self) -> int | None:
        """Steps between snapshots; None where their steps are listed."""
        return self.every if isinstance(self.every, int) else None

    @property
    def patterns(self) -> tuple[str, ...] | None:
        """Names of the matrices to record; None for all."""
        return None if self.matrices is None else tuple(self.matrices)

    def schedule(self, steps: int | None) -> Schedule:
        """At which of so many steps there is a snapshot; None where nobody knows how many."""
        assert not isinstance(self.every, str)  # a tuple since this was made
        return Schedule.of(self.every, early=self.early, steps=steps)

    def contents(self) -> Contents:
        """What a snapshot holds."""
        return Contents(tuple(self.spectra), self.sketch, self.gradients, self.subspaces)


def _words(given: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(filter(None, given.split(","))) if isinstance(given, str) else tuple(given)


def _steps(given: int | str | Sequence[int]) -> int | tuple[int, ...]:
    if not isinstance(given, str):
        return tuple(given) if isinstance(given, Iterable) else operator.index(given)
    try:
        steps = tuple(int(word) for word in given.split(","))
    except ValueError as error:
        raise InputError(
            f"snapshots are taken every so many steps, or at a list such as 0,10,100, not {given!r}"
        ) from error
    return steps if "," in given else steps[0]

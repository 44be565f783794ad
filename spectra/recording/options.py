"""What is recorded, when and where: options of `record`, the callback and the commands."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from spectra.keywords import Share, comma_list, named
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
        Steps between snapshots, from before the first step to after the last; 0 records nothing.
        Or a list of the steps of all snapshots, e.g. 0,10,100.
    early
        Take snapshots after 1, 2, 4, 8, … steps, too, up to the steps between them.
    matrices
        Names of the matrices to record, `*` allowed, e.g. `*.mlp.*`; all by default.
    spectra
        Quantities whose singular values are recorded, e.g. weight and update, of
        `spectra.quantities.QUANTITIES`.
    gradients
        Record the probe gradients themselves, in bfloat16: 170 MB per snapshot of llama_130m.
    subspaces
        Rank of the leading singular subspaces of the probe gradient to record; 0 for none.
    sketch
        Components of the sketch of the probe gradient, which estimates cosine similarities to
        about 1/sqrt(components); 0 for none.
    overhead
        Share of the time that recording may take, e.g. 0.01; unlimited by default. Snapshots, or
        their least valuable parts, are left out to stay below it; which ones depends on the
        machine's speed.
    background
        Background process that decomposes and writes. off: none, training waits for every
        snapshot; wait: training waits only when the process is behind; drop: it then drops the
        snapshot.
    queue
        Number of snapshots that may wait for the background process; each takes memory for a copy
        of all matrices, for every quantity.
    strict
        End the training on an error in recording, such as a full disk; by default only the
        recording ends, with a warning.
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
    overhead: Annotated[Share | None, named("record-overhead")] = None
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
        """Whether there are snapshots: `every` is not 0."""
        return self.rhythm is None or self.rhythm > 0

    @property
    def rhythm(self) -> int | None:
        """Steps between snapshots; None if their steps are listed."""
        return self.every if isinstance(self.every, int) else None

    @property
    def patterns(self) -> tuple[str, ...] | None:
        """Names of the matrices to record; None for all."""
        return None if self.matrices is None else tuple(self.matrices)

    def schedule(self, steps: int | None) -> Schedule:
        """The schedule of snapshots for a number of steps; None if that is unknown."""
        assert not isinstance(self.every, str)  # a tuple since this was made
        return Schedule.of(self.every, early=self.early, steps=steps)

    def contents(self) -> Contents:
        """The contents of a snapshot."""
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
            f"snapshots are taken every N steps or at listed steps such as 0,10,100, not {given!r}"
        ) from error
    return steps if "," in given else steps[0]

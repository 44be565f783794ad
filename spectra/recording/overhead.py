"""Keeping the recorder within a share of the time: what a snapshot leaves out.

The cost of a part of a snapshot is known from the last time that it was taken. When a snapshot is
due, its parts are taken in order of their worth for as long as the share allows; if even the first
does not fit, the snapshot is left out. The first and the last snapshot are always taken whole:
those in between make up for what they cost beyond the share.
"""

from collections import Counter, defaultdict

from spectra.quantities import worth
from spectra.store.layout import Contents
from spectra_data.errors import InputError


class Overhead:
    """Chooses the parts of snapshots so that recording takes at most a share of the time."""

    def __init__(self, overhead: float | None, contents: Contents) -> None:
        if overhead is not None and not 0 < overhead < 1:
            raise InputError(f"overhead is a share of the time between 0 and 1, not {overhead}")
        self.overhead = overhead
        self.spared: Counter[str] = Counter()
        """How often each part was left out; ``snapshot`` if all of it was."""
        self._contents = contents
        self._costs: dict[str, float] = {}

    def choose(self, elapsed: float, spent: float, *, always: bool) -> Contents | None:
        """Contents of the snapshot that is due now; None if it is left out.

        Parameters
        ----------
        elapsed
            Seconds since the recorder was made.
        spent
            Seconds of these that the recorder took.
        always
            Whether it is the first or the last snapshot.
        """
        if self.overhead is None or always:
            return self._contents
        parts: list[str] = []
        cost = 0.0
        for part in sorted(self._contents.parts, key=worth):
            more = cost + self._costs.get(part, 0.0)
            if spent + more > self.overhead * (elapsed + more):
                break  # what is worth less waits until this is affordable again
            parts, cost = [*parts, part], more
        if not parts:
            self.spared["snapshot"] += 1
            return None
        self.spared.update(set(self._contents.parts) - set(parts))
        return self._contents.only(parts)

    def learn(self, seconds: defaultdict[str, float]) -> None:
        """Remember what the parts of a snapshot cost."""
        self._costs |= seconds

    def describe(self) -> str | None:
        """What was left out, in words; None if nothing was."""
        if not self.spared:
            return None
        counts = ", ".join(f"{count} x {part}" for part, count in self.spared.most_common())
        return f"left out to stay within {self.overhead:.2%} of the time: {counts}"

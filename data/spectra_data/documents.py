"""What every corpus is to the rest: a name, a fingerprint, and documents in a fixed order."""

from collections import Counter
from collections.abc import Iterator
from typing import Protocol


class Skips:
    """Counts what a source left out, by place and reason, so that nothing is skipped in silence."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def add(self, place: str, reason: str) -> None:
        self.counts[place, reason] += 1

    @property
    def total(self) -> int:
        return self.counts.total()

    def lines(self) -> list[str]:
        """One line a place and reason, e.g. ``3 x books.jsonl: not JSON``."""
        return [f"{n} x {place}: {reason}" for (place, reason), n in sorted(self.counts.items())]


class DocumentSource(Protocol):
    """A corpus: documents of plain text, in the same order at every reading."""

    @property
    def name(self) -> str:
        """The corpus as the user named it."""
        ...

    def fingerprint(self) -> str:
        """Hash of what the documents are made from: equal fingerprints give equal documents."""
        ...

    def documents(self, skips: Skips) -> Iterator[str]:
        """Yield every document; what cannot be read is counted in `skips`.

        Raises
        ------
        InputError
            When nothing can be read at all, with what to do about it.
        """
        ...

"""The interface of a corpus: a name, a fingerprint, and documents in a fixed order."""

from collections import Counter
from collections.abc import Iterator
from typing import Protocol


class Skips:
    """Counts what a source left out, by location and reason, so that no skip is silent."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def add(self, location: str, reason: str) -> None:
        self.counts[location, reason] += 1

    @property
    def total(self) -> int:
        return self.counts.total()

    def lines(self) -> list[str]:
        """One line for each location and reason, e.g. ``3 x books.jsonl: not JSON``."""
        return [
            f"{n} x {location}: {reason}" for (location, reason), n in sorted(self.counts.items())
        ]


class DocumentSource(Protocol):
    """A corpus: documents of plain text, in the same order every time they are read.

    A source whose documents are fetched or made first also has `expected_characters`, their
    approximate length.
    """

    @property
    def name(self) -> str:
        """The corpus as the user named it."""
        ...

    def fingerprint(self) -> str:
        """Hash of what the documents are made from: equal fingerprints mean equal documents."""
        ...

    def documents(self, skips: Skips) -> Iterator[str]:
        """Yield every document; what cannot be read is counted in `skips`.

        Raises
        ------
        InputError
            When nothing can be read at all; the message says what to do.
        """
        ...

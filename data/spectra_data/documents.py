"""The interface of a corpus: a name, a fingerprint, and documents in a fixed order."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, NamedTuple

MOST_CHARACTERS = 20
"""Characters read for a token at first: nearly all text has fewer in a token, on average."""
MARGIN = 64
"""Tokens before a cut that may differ from those of the whole text."""


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


class NotReadableError(Exception):
    """The file holds nothing that can be read as documents; the message says why."""


class Piece(NamedTuple):
    """A stretch of a document, all of it unless it is long."""

    text: str
    ends: bool = True
    """Whether the document ends here."""


class DocumentSource:
    """A corpus: documents of plain text, in the same order every time they are read.

    A source defines `pieces`, or `documents` if none of its documents is too long for memory.
    """

    expected_characters: ClassVar[int | None] = None
    """Approximate length of documents that are still to be fetched or made; None if they exist."""

    @property
    def name(self) -> str:
        """The corpus as the user named it."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Hash of what the documents are made from: equal fingerprints mean equal documents."""
        raise NotImplementedError

    def pieces(self, skips: Skips) -> Iterator[Piece]:
        """Yield every document in pieces, each read when it is needed.

        What cannot be read is counted in `skips`.

        Raises
        ------
        InputError
            When nothing can be read at all; the message says what to do.
        """
        return (Piece(document) for document in self.documents(skips))

    def documents(self, skips: Skips) -> Iterator[str]:
        """Yield every document whole; see `pieces`."""
        return ("".join(texts) for texts in texts_of(self.pieces(skips)))


def texts_of(pieces: Iterable[Piece]) -> Iterator[Iterator[str]]:
    """The texts of every document's pieces; each iterator is exhausted before the next.

    >>> [list(texts) for texts in texts_of([Piece("a", False), Piece("b"), Piece("c")])]
    [['a', 'b'], ['c']]
    """
    pieces = iter(pieces)
    for first in pieces:
        document = _document(first, pieces)
        yield document
        for _ in document:  # what the caller left
            pass


def _document(piece: Piece, following: Iterator[Piece]) -> Iterator[str]:
    yield piece.text
    while not piece.ends and (found := next(following, None)) is not None:
        piece = found
        yield piece.text


def first_tokens(
    texts: Iterable[str], encode: Callable[[str], list[int]], wanted: int | None
) -> list[int]:
    """The first tokens of a text that comes in pieces; no more pieces are read than needed.

    Parameters
    ----------
    texts
        Pieces of the text.
    encode
        Function that tokenizes a text.
    wanted
        Number of tokens that must be those of the whole text; None if all must be.

    Returns
    -------
    At least that many tokens, or those of all the text.
    """
    texts, text = iter(texts), ""
    goal = None if wanted is None else wanted * MOST_CHARACTERS
    while True:
        text += _read(texts, None if goal is None else goal - len(text))
        if wanted is None or goal is None or len(text) < goal:
            return encode(text)
        tokens = encode(text[:goal])
        if len(tokens) >= wanted + MARGIN:
            return tokens
        goal *= 2


def _read(texts: Iterator[str], characters: int | None) -> str:
    """The next pieces, until they have a number of characters; all of them for None."""
    found, count = [], 0
    while characters is None or count < characters:
        if (text := next(texts, None)) is None:
            break
        found.append(text)
        count += len(text)
    return "".join(found)

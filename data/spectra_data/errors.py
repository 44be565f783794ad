"""The one error that a user can fix, and texts of errors that fit in a line of a terminal."""

import unicodedata
from collections.abc import Sequence

_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of control and format characters, lone surrogates, line separators."""

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""Phrases of torch, whose allocators raise RuntimeError."""


class InputError(ValueError):
    """A user's request cannot be carried out; the message says in one line what to do instead.

    Commands print it without a traceback and exit with 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def first_lines(lines: Sequence[str], most: int = 4) -> list[str]:
    """The first of many lines, and the number of the others.

    >>> first_lines(["a", "b", "c"], most=2)
    ['a', 'b', 'and 1 more']
    """
    rest = len(lines) - most
    return [*lines[:most], f"and {rest} more"] if rest > 0 else list(lines)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: Python's own, NumPy's or torch's."""
    said = str(error)
    return isinstance(error, MemoryError) or any(text in said for text in _OUT_OF_MEMORY)


def printable(text: str) -> str:
    r"""Text that a terminal shows and does not obey: control characters are escaped.

    Line feeds and tabs stay.

    >>> printable("a\x1b[2J")
    'a\\x1b[2J'
    """
    obeyed = (c not in "\n\t" and unicodedata.category(c) in _OBEYED for c in text)
    return "".join(ascii(c)[1:-1] if o else c for c, o in zip(text, obeyed, strict=True))

"""Standard output and standard error that show names without obeying the codes in them.

Names in checkpoints, stores and maps may hold the codes that move a terminal's cursor, set its
title or answer for its user. They are escaped here, at the one place that every line passes.
"""

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast

from spectra_data.errors import printable

_BAR = re.compile(r"\r?|\n*(\x1b\[A)*")
"""Cursor moves of other libraries' progress bars: to the line's start, or down and up."""


class PlainStream:
    """A text stream that escapes control characters, see `printable`."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream
        """Stream behind this one; rich writes there, see `spectra.machine.console`."""

    def write(self, text: str) -> int:
        """Write a text; return its length."""
        if not _BAR.fullmatch(text):
            start = "\r" if text.startswith("\r") else ""
            shown = start + printable(text[len(start) :])
        else:
            shown = text
        self.rich_proxied_file.write(shown)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextlib.contextmanager
def plain_streams() -> Iterator[None]:
    """Escape control characters in everything that is printed."""
    before = sys.stdout, sys.stderr
    try:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and not isinstance(stream, PlainStream):
                setattr(sys, name, cast(TextIO, PlainStream(stream)))
        yield
    finally:
        sys.stdout, sys.stderr = before


def behind(stream: Any) -> Any:
    """The innermost stream that a stream writes to."""
    while (inner := getattr(stream, "rich_proxied_file", None)) is not None:
        stream = inner
    return stream

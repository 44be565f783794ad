"""Lengths in the header of a GGUF file, checked before memory is allocated for them.

The layout is that of the format's specification (ggml, docs/gguf.md), versions 2 and 3.
"""

import mmap
import struct
from pathlib import Path

from spectra_data.errors import InputError
from spectra_data.reading import reading

LARGEST_ARRAY = 1 << 22
"""Entries of all arrays together: three times those of the largest vocabularies with merges."""
LARGEST_DEPTH = 4
MOST_DIMENSIONS = 4
VERSIONS = (2, 3)

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by the number of its type."""
_STRING, _ARRAY = 8, 9
_LEAST_FIELD = 8 + 4 + 1
_LEAST_TENSOR = 8 + 4 + 4 + 8


def require_header(path: Path) -> None:
    """Require a header whose strings, arrays and tables are all in the file.

    Raises
    ------
    InputError
        When the file is not GGUF, or announces more than it holds.
    """
    with reading(path.name), path.open("rb") as file:
        if path.stat().st_size < 24:
            raise InputError(f"{path.name} is not a GGUF file: it has fewer than 24 bytes")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                _Header(content).check()
            except (struct.error, _MalformedError) as error:
                raise InputError(f"{path.name} is damaged: {_reason(error)}") from error


class _MalformedError(Exception):
    pass


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _MalformedError) else "it ends inside its header"


class _Header:
    def __init__(self, content: mmap.mmap) -> None:
        if content[:4] != b"GGUF":
            raise _MalformedError("it does not begin as a GGUF file does")
        self._content, self._at, self._entries = content, 4, 0
        self._order = "<" if content[4:6] != b"\0\0" else ">"

    def check(self) -> None:
        if (version := self._number("I")) not in VERSIONS:
            raise _MalformedError(
                f"it has version {version}; {VERSIONS[0]} and {VERSIONS[1]} are read"
            )
        tensors, fields = self._number("Q"), self._number("Q")
        if tensors * _LEAST_TENSOR + fields * _LEAST_FIELD > len(self._content):
            raise _MalformedError(f"it announces {tensors} tensors and {fields} fields")
        for _ in range(fields):
            self._skip_string()
            self._skip_value(self._number("I"))
        for _ in range(tensors):
            self._skip_string()
            dimensions = self._number("I")
            if dimensions > MOST_DIMENSIONS:
                raise _MalformedError(f"a tensor has {dimensions} dimensions")
            self._skip(8 * dimensions + 4 + 8)

    def _number(self, kind: str) -> int:
        (number,) = struct.unpack_from(self._order + kind, self._content, self._at)
        self._at += struct.calcsize(self._order + kind)
        return int(number)

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._content):
            raise _MalformedError("it ends inside its header")

    def _skip_string(self) -> None:
        self._skip(self._number("Q"))

    def _skip_value(self, kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            self._skip_string()
        elif kind == _ARRAY:
            self._skip_array(depth + 1)
        else:
            self._skip(self._size(kind))

    def _skip_array(self, depth: int) -> None:
        kind, count = self._number("I"), self._number("Q")
        self._entries += count
        if depth > LARGEST_DEPTH or self._entries > LARGEST_ARRAY:
            raise _MalformedError(f"its arrays have {self._entries} entries, at depth {depth}")
        if kind in (_STRING, _ARRAY):
            for _ in range(count):
                self._skip_value(kind, depth)
        else:
            self._skip(count * self._size(kind))

    def _size(self, kind: int) -> int:
        if kind not in _SIZES:
            raise _MalformedError(f"it has a value of the unknown type {kind}")
        return _SIZES[kind]

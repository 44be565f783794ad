"""Checksums of a store's files, which distinguish damage from an interruption.

There are two kinds of records below `FOLDER`. ``rows/7`` has the SHA-256 of every chunk of row 7, a
snapshot, and is written before its step announces it. ``files`` has those of all other files. A
file that is about to change is recorded first, with what it was and what it will be: whenever a
writer is killed, each file is one of the two. The folder is below an array, where no reader of zarr
looks.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

FOLDER = "spectra/step/checksums"
FILES = f"{FOLDER}/files"
ATTRIBUTE = "checksums"
"""Attribute of the root of a store that was made with checksums; its value is their algorithm."""
ALGORITHM = "sha256"
ABSENT = "absent"
"""Stand-in for the checksum of a missing file."""

Buffer = bytes | bytearray | memoryview
Metadata = Mapping[str, Mapping[str, Any]]


class DamagedRecordError(ValueError):
    """A record is not what was written."""


def digest(content: Buffer | None) -> str:
    """The checksum of a file."""
    return ABSENT if content is None else hashlib.sha256(content).hexdigest()


def row_key(row: int) -> str:
    """Key of the record of a snapshot's row."""
    return f"{FOLDER}/rows/{row}"


@dataclass(frozen=True)
class RowRecord:
    """The files of one snapshot."""

    row: int
    step: int
    files: Mapping[str, str]
    """Checksums by key."""

    def pack(self) -> bytes:
        return _pack({"row": self.row, "step": self.step, "files": dict(self.files)})

    @classmethod
    def unpack(cls, content: bytes) -> "RowRecord":
        return cls(**_unpack(content))


@dataclass(frozen=True)
class FileRecord:
    """The files that are not part of a snapshot."""

    files: dict[str, list[str]]
    """Checksums that each file may have, or `ABSENT`, by key."""
    first_row: int = 0
    """The first snapshot that has a record; those before it are older than checksums."""

    def pack(self) -> bytes:
        return _pack({"files": dict(self.files), "first_row": self.first_row})

    @classmethod
    def unpack(cls, content: bytes) -> "FileRecord":
        return cls(**_unpack(content))


def _pack(body: Mapping[str, Any]) -> bytes:
    return json.dumps({"sha256": _own(body), **body}).encode()


def _unpack(content: bytes) -> dict[str, Any]:
    """A record's fields.

    Raises
    ------
    DamagedRecordError
        When the record is not what was written.
    """
    try:
        body = json.loads(content)
        claimed = body.pop("sha256")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise DamagedRecordError(str(error)) from error
    if claimed != _own(body):
        raise DamagedRecordError("its own checksum differs")
    return dict(body)


def _own(body: Mapping[str, Any]) -> str:
    return digest(json.dumps(body, sort_keys=True).encode())


def row_arrays(metadata: Metadata) -> list[str]:
    """Paths of the arrays that have a row for every snapshot, in consolidated metadata."""
    return [
        path
        for path, node in metadata.items()
        if (dims := node.get("dimension_names")) and dims[0] == "step" and len(dims) > 1
    ]


def row_of(key: str, arrays: Collection[str]) -> int | None:
    """The row that a file is a chunk of; None for a file of another kind."""
    path, _, chunk = key.partition("/c/")
    first = chunk.partition("/")[0]
    return int(first) if path in arrays and first.isdecimal() else None

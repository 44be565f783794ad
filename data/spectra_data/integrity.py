"""Checks that files are still what was written: SHA-256 of files, and JSON with its own hash."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "content_sha256"


def file_sha256(file: Path) -> str:
    """SHA-256 of a file, hexadecimal: about 1 GB/s on a core with SHA instructions."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def folder_sha256(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its relative path; hidden files do not count."""
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def difference(known: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """The first difference between the files that were written and those found; None if equal."""
    for name in sorted(known.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in known:
            return f"{name} was added later"
        if known[name] != found[name]:
            return f"{name} is not what was written"
    return None


def sealed(content: Mapping[str, Any]) -> bytes:
    """A JSON object as text that includes a hash of its content."""
    plain = json.loads(json.dumps(content))
    return json.dumps({**plain, SEAL: _sha256(plain)}, indent=2).encode()


def unsealed(text: str | bytes) -> dict[str, Any]:
    """The content of a sealed JSON object; one without a seal, from an earlier version, unchecked.

    Raises
    ------
    ValueError
        When it is not a JSON object, or not what was written.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    seal = content.pop(SEAL, None)
    if seal is not None and seal != _sha256(content):
        raise ValueError("it is not what was written")
    return content


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

"""Files that stand for others: what a repository cloned without Git LFS holds in their place."""

from pathlib import Path

from spectra_data.errors import InputError

POINTER = b"version https://git-lfs.github.com/spec/"
LARGEST_POINTER = 1024
"""Bytes, as Git LFS has it."""


WHAT = "is a pointer of Git LFS, and the file itself is not here: fetch it by `git lfs pull`"


def is_pointer(content: bytes) -> bool:
    """Whether a file that begins so is a pointer."""
    return content.startswith(POINTER)


def require_content(name: str, content: bytes) -> None:
    """Require that a file that begins so is itself.

    Raises
    ------
    InputError
        When it is a pointer of Git LFS.
    """
    if is_pointer(content):
        raise InputError(f"{name} {WHAT}")


def require_fetched(folder: Path) -> None:
    """Require that a tokenizer's files in a folder, or the one that is named, are themselves.

    Raises
    ------
    InputError
        When one is a pointer of Git LFS.
    """
    for file in [folder] if folder.is_file() else folder.glob("tokenizer*"):
        if file.is_file() and file.stat().st_size <= LARGEST_POINTER:
            require_content(str(file), file.read_bytes())

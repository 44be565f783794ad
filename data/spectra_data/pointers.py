"""Git LFS pointers: small files that a repository cloned without Git LFS has in place of others."""

from pathlib import Path

from spectra_data.errors import InputError

POINTER = b"version https://git-lfs.github.com/spec/"
LARGEST_POINTER = 1024
"""Bytes, by the rules of Git LFS."""


WHAT = "is a pointer of Git LFS, and the file itself is not here: fetch it by `git lfs pull`"


def is_pointer(content: bytes) -> bool:
    """Whether a file that begins with this content is a pointer."""
    return content.startswith(POINTER)


def require_content(name: str, content: bytes) -> None:
    """Require that a file that begins with this content is not a pointer.

    Raises
    ------
    InputError
        When it is a pointer of Git LFS.
    """
    if is_pointer(content):
        raise InputError(f"{name} {WHAT}")


def require_fetched(folder: Path) -> None:
    """Require that a tokenizer's file, or those in its folder, are not pointers.

    Raises
    ------
    InputError
        When one is a pointer of Git LFS.
    """
    for file in [folder] if folder.is_file() else folder.glob("tokenizer*"):
        if file.is_file() and file.stat().st_size <= LARGEST_POINTER:
            require_content(str(file), file.read_bytes())

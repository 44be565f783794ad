"""Unfinished files and folders: ``.NAME.HEX.partial`` next to their target, until complete.

The process that makes one holds a lock on it, and a killed process holds nothing: so the next one
recognises what was left behind, and removes it.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows has none: there, leftovers stay, and nothing open can be renamed
    fcntl = None  # type: ignore[assignment]

IS_POSIX = fcntl is not None
"""Whether files can be locked, folders opened, and descriptors given to children."""


@contextlib.contextmanager
def partial_file(target: Path) -> Iterator[Path]:
    """An empty file next to `target`, removed after the block unless it was renamed."""
    with _held(target, os.O_RDWR | os.O_CREAT | os.O_EXCL) as partial:
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """An empty folder next to `target`, removed after the block unless it was renamed."""
    with _held(target, None) as partial:
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(folder: Path, target: str | None = None, *, below: bool = False) -> None:
    """Remove what killed processes left; what a live process is making stays.

    Parameters
    ----------
    folder
        Where to look.
    target
        Name of the file or folder that was being made; None for any.
    below
        Whether to look in all folders below, too.
    """
    pattern = ".*.partial" if target is None else f".{escape(target)}.{'[0-9a-f]' * 32}.partial"
    for path in list(folder.rglob(pattern) if below else folder.glob(pattern)):
        with contextlib.suppress(OSError):
            _remove_unless_held(path)


@contextlib.contextmanager
def _held(target: Path, new_file: int | None) -> Iterator[Path]:
    if fcntl is None:
        yield _made(target, new_file)
        return
    while True:
        partial = target.with_name(f".{target.name}.{uuid4().hex}.partial")
        if new_file is None:
            partial.mkdir()
        try:
            descriptor = os.open(partial, os.O_RDONLY if new_file is None else new_file, 0o666)
        except FileNotFoundError:
            if new_file is not None:
                raise
            continue  # it was removed as a leftover before it was opened
        _lock(descriptor)
        if os.fstat(descriptor).st_nlink:  # else it was removed before it was locked
            break
        os.close(descriptor)
    try:
        yield partial
    finally:
        os.close(descriptor)


def _made(target: Path, new_file: int | None) -> Path:
    partial = target.with_name(f".{target.name}.{uuid4().hex}.partial")
    if new_file is None:
        partial.mkdir()
    else:
        partial.touch(exist_ok=False)
    return partial


def _lock(descriptor: int) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _remove_unless_held(path: Path) -> None:
    if fcntl is None:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(descriptor)

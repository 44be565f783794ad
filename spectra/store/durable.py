"""Writing to a local disk so that what was announced survives a power cut."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from spectra_data.errors import InputError
from spectra_data.partial import IS_POSIX, partial_file, partial_folder


def is_partial(key: str) -> bool:
    """Whether a file was left by an interrupted `write_file`."""
    name = key.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".partial")


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Replace a file atomically; it and its name are on disk when this returns.

    Raises
    ------
    InputError
        When the path exists and is not a file: a folder, a device, a pipe.
    """
    with _placed(path), partial_file(path) as partial:
        partial.write_bytes(content)
        _replace(partial, path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path for a library to write to; the file then takes `path`'s place, see `write_file`.

    It is in a folder of its own, with anything else that the library puts there.
    """
    with _placed(path), partial_folder(path) as folder:
        yield folder / path.name
        _replace(folder / path.name, path)


@contextlib.contextmanager
def _placed(path: Path) -> Iterator[None]:
    """Make the folders of a file before it is written, and bring all names to disk afterwards."""
    require_file(path)
    new_folders = []
    folder = path.parent
    while not folder.exists():
        new_folders.append(folder)
        folder = folder.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    yield
    sync_folder(path.parent)
    for new in new_folders:
        sync_folder(new.parent)


def _replace(partial: Path, path: Path) -> None:
    _sync_file(partial)
    partial.replace(path)


def require_file(path: Path) -> None:
    """Require a path that is free or a file.

    Raises
    ------
    InputError
        When a folder, a device or a pipe is there.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # nothing is there
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise InputError(f"cannot write {path}: it is {kind_of(mode)}")


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to disk; Windows does that itself, and opens no folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        if IS_POSIX:
            raise
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring every file and folder below to disk."""
    for path in folder.rglob("*"):
        (sync_folder if path.is_dir() else _sync_file)(path)
    sync_folder(folder)


def _sync_file(path: Path) -> None:
    with path.open("rb" if IS_POSIX else "r+b") as file:  # Windows wants to be able to write
        os.fsync(file.fileno())


def kind_of(mode: int) -> str:
    """What is no regular file, in words, from its mode."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "no file")

"""Writing to a local disk so that what was announced survives a power cut."""

import asyncio
import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from zarr.core.buffer import Buffer

from spectra.store.files import RegularFiles, kind_of
from spectra_data.errors import InputError
from spectra_data.partial import IS_POSIX, partial_file, partial_folder


class DurableStore(RegularFiles):
    """A local zarr store whose every write is on disk before it returns.

    zarr's own replaces files atomically without fsync: after a power cut, a row's `step` could have
    reached the disk before the row.
    """

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self.set_sync, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        if self.read_only:
            raise OSError(f"{self.root} was opened for reading")
        write_file(self.root / key, memoryview(value.as_buffer_like()))

    async def delete(self, key: str) -> None:
        await super().delete(key)
        folder = (self.root / key).parent
        if folder.exists():
            await asyncio.to_thread(sync_folder, folder)


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
    _require_file(path)
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


def _require_file(path: Path) -> None:
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

"""Writing to a local disk so that what was announced survives a power cut."""

import asyncio
import os
from pathlib import Path
from uuid import uuid4

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore


class DurableStore(LocalStore):
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
    """Whether a file is what an interrupted `write_file` left."""
    name = key.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".partial")


def remove_partial(folder: Path) -> None:
    """Remove what interrupted `write_file`s left below a folder that nobody else writes to."""
    for file in folder.rglob(".*.partial"):
        file.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Replace a file atomically; it and its name are on disk when this returns."""
    new_folders = []
    folder = path.parent
    while not folder.exists():
        new_folders.append(folder)
        folder = folder.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        with partial.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    for new in new_folders:
        sync_folder(new.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring every file and folder below to disk."""
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)

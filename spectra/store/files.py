"""The files of a store on this machine: read without waiting, written durably."""

import asyncio
import os
import stat
from pathlib import Path
from typing import Self

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.common import BytesLike
from zarr.storage import LocalStore

from spectra.store.durable import kind_of, sync_folder, write_file
from spectra_data.errors import InputError

LARGEST_CHUNK = 1 << 29
"""Bytes of the largest chunk that is read; the largest shard that is written has 1 << 28."""
_ZSTD = b"\x28\xb5\x2f\xfd"


class RegularFiles(LocalStore):
    """A local zarr store that reads only regular files: a pipe or a device would never end.

    Parameters
    ----------
    root
        The store's folder.
    read_only
        Whether writing is refused.
    within
        Folder that no link may lead out of, if there is one.
    """

    def __init__(
        self, root: Path | str, *, read_only: bool = False, within: Path | None = None
    ) -> None:
        super().__init__(root, read_only=read_only)
        self.within = within

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self.root, read_only=read_only, within=self.within)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        await asyncio.to_thread(self._require_file, key)
        return self._bounded(key, await super().get(key, prototype, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self._require_file(key)
        return self._bounded(key, super().get_sync(key, prototype=prototype, byte_range=byte_range))

    def _bounded(self, key: str, found: Buffer | None) -> Buffer | None:
        if found is not None and announced_bytes(found.as_buffer_like()) > LARGEST_CHUNK:
            raise InputError(f"{self.root / key} announces more bytes than a store writes at once")
        return found

    def _require_file(self, key: str) -> None:
        path = self.root / key
        try:
            mode = path.stat().st_mode
        except OSError:  # nothing is there
            return
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"cannot read {path}: it is {kind_of(mode)}, not a file")
        if self.within is not None and leads_out(path, self.within):
            raise InputError(f"{path} is a link that leads out of {self.within}")


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path below a folder leads out of it, by links."""
    inner, outer = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([inner, outer]) != outer


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


def announced_bytes(content: BytesLike) -> int:
    """Bytes that a Zstandard frame says it holds; 0 if it does not say, or is not a frame.

    The layout of its header is that of RFC 8878, section 3.1.1.1.

    >>> import numcodecs
    >>> announced_bytes(numcodecs.Zstd().encode(bytes(70_000)))
    70000
    """
    head = bytes(memoryview(content)[:18])
    if not head.startswith(_ZSTD) or len(head) < 5:
        return 0
    descriptor = head[4]
    single_segment = descriptor >> 5 & 1
    size = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    announced = int.from_bytes(head[start : start + size], "little")
    return announced + 256 if size == 2 else announced

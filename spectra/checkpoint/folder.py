"""The files of a checkpoint: on this machine, on a hub, or at any address that fsspec reads.

Files are read in ranges and never stored: of a remote checkpoint, only the ranges that are read
cross the network.
"""

import threading
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem

from spectra_data.errors import InputError
from spectra_data.pointers import LARGEST_POINTER, require_content
from spectra_data.reading import reading


class Folder:
    """A folder of files, one of which the user may have named.

    Parameters
    ----------
    system
        File system that holds the folder.
    root
        Path of the folder on it.
    named
        File that the user named; on a remote system, the only file that is known.
    """

    def __init__(self, system: fsspec.AbstractFileSystem, root: str, named: str | None = None):
        self._system = system
        self._root = root.rstrip("/")
        self.named = named
        self._sizes = self._list(named)

    @classmethod
    def at(cls, path: Path) -> "Folder":
        """The folder at a path on this machine."""
        return cls(LocalFileSystem(), str(path))

    @property
    def local(self) -> Path | None:
        """Its path on this machine; None if it is remote."""
        return Path(self._root) if isinstance(self._system, LocalFileSystem) else None

    @property
    def names(self) -> list[str]:
        """Names of the files, sorted."""
        return sorted(self._sizes)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._sizes[name]

    def fingerprint(self, name: str) -> list[int]:
        """Size of a file and, if it is local, its modification time: they change with the file."""
        if self.local is None:
            return [self.size(name)]
        return [self.size(name), (self.local / name).stat().st_mtime_ns]

    def open(self, name: str) -> "RangedFile":
        """Open a file, to read ranges of it.

        Raises
        ------
        InputError
            When it cannot be read, or is a pointer to a file that was not fetched.
        """
        file = RangedFile(self._system, f"{self._root}/{name}", name, self.size(name))
        if file.size <= LARGEST_POINTER:
            try:
                require_content(name, bytes(file.read(0, file.size).numpy()))
            except InputError:
                file.stream.close()
                raise
        return file

    def text(self, name: str) -> str:
        """The text of a small file."""
        with self.open(name) as file:
            return bytes(file.read(0, file.size).numpy()).decode("utf-8", errors="replace")

    def _list(self, named: str | None) -> dict[str, int]:
        with reading(named or self._root):
            if self.local is not None:  # a hub's cache holds links
                paths = self.local.iterdir()
                return {path.name: path.stat().st_size for path in paths if path.is_file()}
            if named is not None:
                return {named: int(self._system.size(f"{self._root}/{named}") or 0)}
            entries = self._system.ls(self._root, detail=True)
        return {
            entry["name"].rstrip("/").rpartition("/")[2]: int(entry["size"] or 0)
            for entry in entries
            if entry["type"] == "file"
        }


class RangedFile:
    """A file that is read in ranges; several threads may share it."""

    def __init__(self, system: fsspec.AbstractFileSystem, path: str, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.local = Path(path) if isinstance(system, LocalFileSystem) else None
        """Its path on this machine; None if it is remote."""
        # ranges are large, and none is read twice
        options: dict[str, Any] = {} if self.local is not None else {"cache_type": "none"}
        with reading(name):
            self.stream = system.open(path, "rb", **options)
        self._lock = threading.Lock()

    def __enter__(self) -> "RangedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def read(self, offset: int, count: int) -> torch.Tensor:
        """Read bytes, as a uint8 tensor.

        Raises
        ------
        InputError
            When the file ends too early, or the network fails.
        """
        buffer = torch.empty(count, dtype=torch.uint8)
        view = buffer.numpy().data
        done = 0
        with self._lock, reading(self.name):
            self.stream.seek(offset)
            while done < count:
                got = self.stream.readinto(view[done:])
                if not got:
                    raise InputError(
                        f"{self.name} is truncated: it ends at byte {offset + done}, "
                        f"{count - done} bytes too early"
                    )
                done += got
        return buffer

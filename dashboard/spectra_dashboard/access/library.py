"""Stores and rank maps below a folder, by name.

A name is a path relative to the folder. A name that a browser sends is looked up among the names
that were found; it never becomes a path. Links that lead out of the folder are skipped, and one
bad file does not hide the others.
"""

import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spectra.allocation.rankmap import SCHEMA as MAP_SCHEMA
from spectra.allocation.rankmap import RankMap
from spectra.store.files import leads_out
from spectra_dashboard.access.memory import Memory
from spectra_dashboard.access.run import Run
from spectra_data.errors import InputError, printable

LOOK_AGAIN = 3.0
"""Seconds after which the folder is searched again."""
DEEPEST = 8
MAP_BYTES = 64 << 20
HEAD_BYTES = 16 << 20
_PASSED_OVER = {"node_modules", "__pycache__", "site-packages"}


@dataclass(frozen=True)
class MapFile:
    """A rank map below the folder."""

    name: str
    path: Path
    folder: Path
    """Folder that it was found in."""

    def read(self) -> RankMap:
        """Read the map.

        Raises
        ------
        InputError
            When the map is not valid, or became a link that leads out of the folder; the message
            has its name instead of its path.
        """
        if leads_out(self.path, self.folder):
            raise InputError(f"{self.name} is a link that leads out of the folder")
        try:
            return RankMap.load(self.path)
        except InputError as error:
            raise InputError(str(error).replace(str(self.path), self.name)) from error


class Library:
    """Stores and maps below a folder; or one store, if the folder is one."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        if not self.folder.is_dir():
            raise InputError(f"no folder {folder}: name the folder of your stores")
        self.memory = Memory()
        self._runs: dict[str, Run] = {}
        self._maps: dict[str, MapFile] = {}
        self._looked = float("-inf")
        self._lock = threading.Lock()

    @property
    def runs(self) -> dict[str, Run]:
        """All stores by name, in the order of names."""
        self._look()
        return self._runs

    @property
    def maps(self) -> dict[str, MapFile]:
        """All rank maps by name."""
        self._look()
        return self._maps

    def run(self, name: str) -> Run:
        """A store by its name.

        Raises
        ------
        InputError
            When there is no store of that name.
        """
        found = self.runs.get(name)
        if found is None:
            raise InputError(f"there is no store called {name!r} here")
        return found

    def map(self, name: str) -> RankMap:
        """A rank map by its name.

        Raises
        ------
        InputError
            When there is no map of that name, or it is not valid.
        """
        found = self.maps.get(name)
        if found is None:
            raise InputError(f"there is no rank map called {name!r} here")
        try:
            modified = found.path.stat().st_mtime_ns
        except OSError as error:
            raise InputError(f"the rank map {name!r} was removed") from error
        return self.memory.get(("map", name), modified, found.read)

    def _look(self) -> None:
        # one thread searches, the others use the last result: a folder may be slow
        if time.monotonic() - self._looked < LOOK_AGAIN or not self._lock.acquire(
            blocking=self._looked < 0
        ):
            return
        try:
            stores, maps = _found(self.folder)
            known, within = self._runs, self.folder
            self._runs = {
                name: known.get(name) or Run(name, path, self.memory, within=within)
                for name, path in stores
            }
            self._maps = {name: MapFile(name, path, self.folder) for name, path in maps}
            self._looked = time.monotonic()
        finally:
            self._lock.release()


def _found(folder: Path) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]]]:
    """Stores and maps with their names, sorted by path."""
    if is_store(folder):
        return [(_shown(folder.name), folder)], []
    stores, maps = [], []
    for path, is_folder in sorted(_candidates(folder)):
        if leads_out(path, folder):
            continue
        name = _shown(path.relative_to(folder).as_posix())
        if is_folder:
            if is_store(path):
                stores.append((name, path))
        elif _is_map(path):
            maps.append((name, path))
    return stores, maps


def _shown(name: str) -> str:
    """A name that can be sent and shown in a line."""
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


def _candidates(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Zarr stores (True) and JSON files (False) below a folder."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        inner = []
        for name in folders:
            if name.startswith(".") or name in _PASSED_OVER:
                continue
            if name.endswith(".zarr") or _is_file(here / name / "zarr.json"):
                yield here / name, True
            elif len(here.relative_to(folder).parts) < DEEPEST:
                inner.append(name)
        folders[:] = inner
        yield from ((here / name, False) for name in files if name.endswith(".json"))


def is_store(path: Path) -> bool:
    """Whether a folder is a store of any schema version, or a broken store by its name."""
    head = _head(path / "zarr.json", HEAD_BYTES)
    if head is None:
        return path.suffix == ".zarr"
    if b'"spectra/' in head:
        return True
    try:
        json.loads(head)
    except (ValueError, RecursionError):
        return path.suffix == ".zarr"
    return False


def _is_map(path: Path) -> bool:
    try:
        if not 2 < path.stat().st_size < MAP_BYTES:
            return False
    except OSError:
        return False
    return json.dumps(MAP_SCHEMA).encode() in (_head(path, 200) or b"")


def _head(path: Path, size: int) -> bytes | None:
    """First bytes of a file; None for anything else, such as a pipe, which would never end."""
    if not _is_file(path):
        return None
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return None


def _is_file(path: Path) -> bool:
    """Like Path.is_file, but False in a folder that may not be entered, where that raises."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False

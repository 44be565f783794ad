"""Stores and rank maps below a folder, by name.

A name is a path relative to the folder. A name that a browser sends is looked up among the names
that were found; it never becomes a path.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spectra.allocation.rankmap import SCHEMA as MAP_SCHEMA
from spectra.allocation.rankmap import RankMap
from spectra_dashboard.access.memory import Memory
from spectra_dashboard.access.run import Run
from spectra_data.errors import InputError

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

    def read(self) -> RankMap:
        """Read the map.

        Raises
        ------
        InputError
            When the map is not valid; the message has its name instead of its path.
        """
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
            known = self._runs
            self._runs = {
                name: known.get(name) or Run(name, path, self.memory) for name, path in stores
            }
            self._maps = {name: MapFile(name, path) for name, path in maps}
            self._looked = time.monotonic()
        finally:
            self._lock.release()


def _found(folder: Path) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]]]:
    """Stores and maps with their names, sorted by path."""
    if is_store(folder):
        return [(folder.name, folder)], []
    stores, maps = [], []
    for path in sorted(_candidates(folder)):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            if is_store(path):
                stores.append((name, path))
        elif _is_map(path):
            maps.append((name, path))
    return stores, maps


def _candidates(folder: Path) -> Iterator[Path]:
    """Zarr stores and JSON files below a folder; links to folders are not followed."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        inner = []
        for name in folders:
            if name.startswith(".") or name in _PASSED_OVER:
                continue
            if name.endswith(".zarr") or (here / name / "zarr.json").is_file():
                yield here / name
            elif len(here.relative_to(folder).parts) < DEEPEST:
                inner.append(name)
        folders[:] = inner
        yield from (here / name for name in files if name.endswith(".json"))


def is_store(path: Path) -> bool:
    """Whether a folder is a store of any schema version, or a broken store by its name."""
    try:
        with (path / "zarr.json").open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
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
        with path.open("rb") as file:
            return json.dumps(MAP_SCHEMA).encode() in file.read(200)
    except OSError:
        return False

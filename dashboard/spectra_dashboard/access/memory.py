"""A cache of results: each is computed once for all callers, and dropped when memory is full."""

import sys
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from cachetools import LRUCache

T = TypeVar("T")
BYTES = 128 << 20
TREE_BYTES = 3 << 20
"""Bytes of an opened store: lazy arrays and their metadata."""


class Memory:
    """Keeps results up to a number of bytes; drops those longest unused first."""

    def __init__(self, most: int = BYTES) -> None:
        self._kept: LRUCache[Hashable, tuple[Any, Any]] = LRUCache(most, getsizeof=size_of)
        self._making: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, stamp: Any, make: Callable[[], T]) -> T:
        """Result for a key: the one kept, or one from `make`; other callers wait for it.

        Only the result with the latest stamp of a key is kept: the stamp identifies file contents.
        """
        with self._lock:
            if key in self._kept and self._kept[key][0] == stamp:
                found: T = self._kept[key][1]
                return found
            making = self._making.get((key, stamp))
            if mine := making is None:
                making = self._making[key, stamp] = Future()
        assert making is not None
        if mine:
            self._make(key, stamp, make, making)
        result: T = making.result()
        return result

    def _make(self, key: Hashable, stamp: Any, make: Callable[[], T], making: "Future[T]") -> None:
        try:
            made = make()
        except BaseException as error:
            with self._lock:
                del self._making[key, stamp]
            making.set_exception(error)
            return
        with self._lock:
            del self._making[key, stamp]
            if size_of((stamp, made)) <= self._kept.maxsize:
                self._kept[key] = (stamp, made)
        making.set_result(made)


def size_of(made: Any) -> int:
    """Bytes of arrays and datasets; a guess for other objects."""
    if isinstance(made, np.ndarray | xr.Dataset | xr.DataArray):
        return int(made.nbytes) + 1024
    if isinstance(made, tuple | list):
        return 64 + sum(map(size_of, made))
    if isinstance(made, dict):
        return 64 + sum(map(size_of, made.values()))
    if hasattr(made, "each"):  # candidates: a spectrum and its errors for each matrix
        return int(sum(3 * candidate.values.nbytes for candidate in made.each)) + 4096
    if isinstance(made, xr.DataTree):
        return TREE_BYTES
    return sys.getsizeof(made) + 256

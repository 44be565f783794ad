"""Results kept for a while: computed once however many ask, and forgotten when memory runs out."""

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
"""Of an opened store: lazy arrays and their metadata."""


class Memory:
    """Keeps results up to a number of bytes; the ones longest unused go first."""

    def __init__(self, most: int = BYTES) -> None:
        self._kept: LRUCache[Hashable, tuple[Any, Any]] = LRUCache(most, getsizeof=size_of)
        self._making: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, stamp: Any, make: Callable[[], T]) -> T:
        """What was made for a key before, or what `make` gives; others that ask wait for it.

        Of a key only the result of one stamp is kept: that of files as they were lately.
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
    """Bytes of arrays and datasets; of other things a guess."""
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

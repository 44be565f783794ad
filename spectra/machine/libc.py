"""Switches of glibc for memory and processes; other C libraries do not have them."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

ARENAS = 2
EVERY = 30.0
"""Seconds between two releases of free memory."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Constants of malloc.h."""
PR_SET_PDEATHSIG = 1


def keep_freed_memory() -> None:
    """Keep freed memory in the process, which needs it again in the next step.

    Otherwise large tensors go back to the system, which clears every page again.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def few_arenas() -> None:
    """Let threads share arenas; call it before any exist.

    Otherwise each thread has its own and keeps the memory freed in it, so that a server's memory
    grows for hours although nothing is held.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(M_ARENA_MAX, ARENAS)


def trim() -> None:
    """Return free memory to the system now, between pieces of work that take much of it."""
    if (malloc_trim := _function("malloc_trim")) is not None:
        malloc_trim(0)


def give_back(stop: threading.Event) -> None:
    """Return free memory to the system from time to time, until `stop` is set."""
    while not stop.wait(EVERY):
        trim()


def with_parent() -> Callable[[], None] | None:
    """Function for a child to call, so that it is killed with its parent; None if unavailable."""
    prctl = _function("prctl")
    return None if prctl is None else lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _function(name: str) -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # if the process has no library of its own
        return None

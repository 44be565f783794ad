"""What glibc can be told about memory and processes; other C libraries have no such switches."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

ARENAS = 2
EVERY = 30.0
"""Seconds."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Names of malloc.h."""
PR_SET_PDEATHSIG = 1


def keep_freed_memory() -> None:
    """Let freed memory stay with the process, which wants it again in the next step.

    Otherwise large tensors are handed back to the system, which clears every page anew.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def few_arenas() -> None:
    """Let threads share arenas; before there are any.

    Each thread has one of its own, and keeps what was freed in it, so that a server's memory grows
    for hours although nothing is held.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(M_ARENA_MAX, ARENAS)


def give_back(stop: threading.Event) -> None:
    """Give what is free back to the system from time to time, until told to stop."""
    trim = _function("malloc_trim")
    while trim is not None and not stop.wait(EVERY):
        trim(0)


def with_parent() -> Callable[[], None] | None:
    """What has a child killed when its parent is, which can no longer tell it to stop."""
    prctl = _function("prctl")
    return None if prctl is None else lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _function(name: str) -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # where there is no library of the process' own
        return None

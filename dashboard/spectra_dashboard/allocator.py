"""Keeping the process small: what threads freed goes back to the system.

glibc gives each thread an arena of its own and keeps what was freed in it, so that a server's
memory grows for hours although nothing is held. Other C libraries have no such switches.
"""

import ctypes
import threading
from typing import Any

ARENAS = 2
EVERY = 30.0
"""Seconds."""
_M_ARENA_MAX = -8


def few_arenas() -> None:
    """Let threads share arenas; before there are any."""
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_M_ARENA_MAX, ARENAS)


def give_back(stop: threading.Event) -> None:
    """Give what is free back to the system from time to time, until told to stop."""
    trim = _function("malloc_trim")
    while trim is not None and not stop.wait(EVERY):
        trim(0)


def _function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # where there is no library of the process' own
        return None

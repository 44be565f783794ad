"""One process at a time writes a run."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from data.errors import InputError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder; the system lets go of it with the process, however that ends.

    Raises
    ------
    InputError
        When another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has none
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is writing to {folder}: wait for it") from error
        yield
    finally:
        os.close(descriptor)

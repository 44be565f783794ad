"""One process at a time writes to a folder."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from spectra_data.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has none: two writers are not kept apart there
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """Holds a folder until it is released or its last holder ends, however that ends.

    A process may take a folder over from itself: its earlier lock is then `lost`. The
    descriptor can be handed to a child, which then holds the folder too.
    """

    _held: ClassVar[dict[Path, "FolderLock"]] = {}

    def __init__(self, folder: Path, patience: float = 0.0, *, take_over: bool = False) -> None:
        """Lock a folder, waiting for at most `patience` seconds.

        Raises
        ------
        InputError
            When another process holds it, or this one does and `take_over` is not set.
        """
        self.lost = False
        """Whether it was released, or taken over."""
        self.descriptor: int | None = None
        """Descriptor of the folder; None on Windows."""
        self._folder = folder.resolve()
        self.on_lost: Callable[[], None] = lambda: None
        """Called when this process takes the folder over from itself."""
        if take_over and (before := self._held.get(self._folder)):
            before.on_lost()
            before.release()
        if fcntl is not None:
            self.descriptor = os.open(folder, os.O_RDONLY)
            self._lock(folder, self.descriptor, time.monotonic() + patience)
        self._held[self._folder] = self

    def release(self) -> None:
        """Release the folder; further calls do nothing."""
        if not self.lost and self._held.get(self._folder) is self:
            del self._held[self._folder]
            if self.descriptor is not None:
                with contextlib.suppress(OSError):  # for a child that still has it, too
                    fcntl.flock(self.descriptor, fcntl.LOCK_UN)
                os.close(self.descriptor)
        self.lost = True

    def _lock(self, folder: Path, descriptor: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    raise InputError(
                        f"another process is writing to {folder}: wait for it"
                    ) from error
                time.sleep(0.05)
            except OSError:  # a file system without locks
                return


@contextlib.contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder for the length of a block.

    Raises
    ------
    InputError
        When another process still holds it after `patience` seconds.
    """
    lock = FolderLock(folder, patience)
    try:
        yield
    finally:
        lock.release()


# a forked child (of a DataLoader, say) holds nothing: what it closes stays the parent's
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=FolderLock._held.clear)

"""Cache of what was computed from a corpus, for the next run."""

import atexit
import contextlib
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from spectra_data.errors import InputError, first_line
from spectra_data.partial import partial_folder, remove_leftovers


def cache_folder(*parts: str) -> Path:
    """Folder of cached results: ``$SPECTRA_CACHE``, else ``$XDG_CACHE_HOME/spectra-dynamics``.

    If the latter cannot be written to, it is a temporary folder, removed when the process ends; a
    line says so.

    Raises
    ------
    InputError
        When ``$SPECTRA_CACHE`` cannot be made.
    """
    return Path(_root(), *parts)


def _root() -> Path:
    if named := os.environ.get("SPECTRA_CACHE"):
        root = Path(named)
        if reason := _unusable(root):
            raise InputError(
                f"cannot make the cache {root} ({reason}): set SPECTRA_CACHE to another folder"
            )
        return root
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    root = Path(base) / "spectra-dynamics"
    reason = _unusable(root) or (None if os.access(root, os.W_OK) else "it is read-only")
    return _temporary(str(root), reason) if reason else root


def _unusable(root: Path) -> str | None:
    """Reason why a folder cannot be made; None if it exists."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or first_line(error)
    return None


@functools.cache
def _temporary(root: str, reason: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="spectra-cache-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    print(
        f"cannot write to the cache {root} ({reason}): results are not kept for later runs; set "
        "SPECTRA_CACHE to keep them",
        file=sys.stderr,
    )
    return folder


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a folder that appears at `target` complete, or not at all if the block fails.

    If two processes fill the same folder, the first to finish wins and the other's work is dropped:
    the content of a cached folder is a function of its name.
    """
    with contextlib.ExitStack() as making:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(target.parent)
            partial = making.enter_context(partial_folder(target))
        except OSError as error:
            raise InputError(
                f"cannot write to the cache {target.parent} ({error.strerror}): "
                "set SPECTRA_CACHE to another folder"
            ) from error
        yield partial
        try:
            partial.rename(target)
        except OSError:
            if not target.exists():
                raise


def discard(cached: Path, reason: object) -> None:
    """Remove a damaged file or folder from the cache and say so; the caller makes it again."""
    print(f"{cached} is damaged ({reason}): made again", file=sys.stderr)
    if cached.is_dir():
        shutil.rmtree(cached, ignore_errors=True)
    else:
        cached.unlink(missing_ok=True)

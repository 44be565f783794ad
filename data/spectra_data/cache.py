"""Where what was computed once from a corpus is kept for the next run."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from spectra_data.errors import InputError
from spectra_data.partial import partial_folder, remove_leftovers


def cache_folder(*parts: str) -> Path:
    """Folder of cached results: ``$SPECTRA_CACHE``, else ``$XDG_CACHE_HOME/spectra-dynamics``."""
    root = os.environ.get("SPECTRA_CACHE")
    if not root:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = str(Path(base) / "spectra-dynamics")
    return Path(root, *parts)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a folder that appears at `target` whole, or, when the block fails, not at all.

    Where two processes fill the same folder, the first to end wins and the other's work is dropped:
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
                "name another folder by SPECTRA_CACHE"
            ) from error
        yield partial
        try:
            partial.rename(target)
        except OSError:
            if not target.exists():
                raise


def discard(cached: Path, reason: object) -> None:
    """Remove what is damaged in the cache, and say so: it is made again."""
    print(f"{cached} is damaged ({reason}): made again", file=sys.stderr)
    if cached.is_dir():
        shutil.rmtree(cached, ignore_errors=True)
    else:
        cached.unlink(missing_ok=True)

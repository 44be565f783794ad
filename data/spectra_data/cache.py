"""Cache of what was computed from a corpus, for the next run."""

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

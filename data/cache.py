"""Where what was computed once from a corpus is kept for the next run."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data.errors import InputError


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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"cannot write to the cache {target.parent} ({error.strerror}): "
            "name another folder by SPECTRA_CACHE"
        ) from error
    try:
        yield partial
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)

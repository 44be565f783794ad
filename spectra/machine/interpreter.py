"""Child processes of Python that find the modules of this process, and no others."""

import os
import sys
from pathlib import Path


def run_module(module: str) -> list[str]:
    """The command that runs a module, without looking for any in the working directory.

    A user's `queue.py` or `data.py` there would be run in place of a library's.
    """
    return [sys.executable, "-P", "-m", module]


def search_path() -> dict[str, str]:
    """Environment variables that make such a process find modules where this one does."""
    here = Path.cwd()
    paths = [path for path in sys.path if path and Path(path) != here]
    paths += [str(root) for root in _roots() if str(root) not in paths]
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _roots() -> list[Path]:
    """Folders of our own packages, which may be found through the working directory alone."""
    names = ("spectra", "spectra_data", "spectra_pretrain", "spectra_dashboard")
    files = (getattr(sys.modules.get(name), "__file__", None) for name in names)
    return [Path(file).resolve().parents[1] for file in files if file]

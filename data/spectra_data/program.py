"""The `spectra` program: the command line, unless another package is in its place.

PyPI has a colour library that installs into a folder `spectra`, too. Whichever is installed last
silently overwrites the other's files.
"""

import sys
import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

TAKEN = (
    "spectra: the package `spectra`, a colour library, is installed over spectra-dynamics: "
    "run `pip uninstall spectra`, then `pip install --force-reinstall --no-deps spectra-dynamics`"
)


def main() -> int:
    """Run the command line; see `spectra.cli.main`."""
    try:
        with warnings.catch_warnings(record=True) as raised:
            ours = "RankMap" in getattr(import_module("spectra"), "__all__", ())
        cli = import_module("spectra.cli")
    except ImportError as error:
        if error.name not in ("spectra", "spectra.cli") and not _is_installed("spectra"):
            raise
        ours = False
    if not ours:
        print(TAKEN, file=sys.stderr)
        return 2
    for warning in raised:
        print(f"spectra: {warning.message}", file=sys.stderr)
    return int(cli.main())


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())

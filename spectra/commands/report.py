"""Write all figures of a store into one HTML file that opens without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from spectra.commands.options import parse


@dataclass(frozen=True)
class Options:
    """Options of `spectra report`."""

    store: tyro.conf.Positional[str]
    """Store to draw, e.g. runs/demo/spectra.zarr."""
    out: Path | None = None
    """File to write; by default report.html next to the store (here, if the store is a URL)."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="report", description=__doc__)
    from spectra.report.page import write_report
    from spectra.store.destination import messages_beside

    folder = Path() if "://" in options.store else Path(options.store).parent
    out = options.out or folder / "report.html"
    size = write_report(options.store, out)
    with messages_beside(out):
        print(f"wrote {out} ({size / 1e6:.1f} MB): open it in any browser")
    return 0

"""Write all figures of a store into one HTML file that opens without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import tyro

from spectra.commands.options import parse


@dataclass(frozen=True)
class Options:
    """Options of `spectra report`."""

    store: tyro.conf.Positional[str]
    """Store to draw, e.g. runs/demo/spectra.zarr."""
    out: Path | None = None
    """File to write, next to the store by default (here, if the store is a URL): report.html for
    spectra.zarr, NAME-report.html for any other NAME.zarr."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="report", description=__doc__)
    from spectra.report.page import write_report
    from spectra.store.destination import messages_beside

    out = options.out or _beside(options.store)
    size = write_report(options.store, out)
    with messages_beside(out):
        print(f"wrote {out} ({size / 1e6:.1f} MB): open it in any browser")
    return 0


def _beside(store: str) -> Path:
    """The default file: of its own for every store in a folder."""
    if "://" in store:
        folder, name = Path(), PurePosixPath(store).name
    else:
        place = Path(store).resolve() if Path(store).name in ("", "..") else Path(store)
        folder, name = place.parent, place.name
    stem = name.removesuffix(".zarr")
    return folder / ("report.html" if stem == "spectra" else f"{stem}-report.html")

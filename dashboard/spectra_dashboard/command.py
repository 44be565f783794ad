"""Show every store and rank map below a folder in a browser, live.

It listens only on this machine unless --host says otherwise; then the printed address has a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from spectra.commands.options import parse
from spectra_dashboard.registry import PAGES
from spectra_data.errors import InputError


@dataclass(frozen=True)
class Options:
    """Options of `spectra dashboard`."""

    folder: tyro.conf.Positional[str] = "."
    """Folder whose stores are shown, or one store."""
    host: str = "127.0.0.1"
    """Address to listen on; any but this machine's own needs the printed token."""
    port: int = 8050
    """Port to listen on; 0 for any free port."""
    allow_host: tuple[str, ...] = ()
    """Further names of the server, e.g. that of a proxy."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    described = f"{__doc__}\nPages: {', '.join(PAGES)}."
    options = parse(Options, arguments, command="dashboard", description=described)
    if "://" in options.folder:
        raise InputError(
            f"the dashboard shows folders on this machine, not {options.folder}: copy the store "
            "here, or draw it with `spectra report`"
        )
    if not 0 <= options.port <= 65535:
        raise InputError(f"--port is from 0 to 65535, not {options.port}")
    from spectra_dashboard.access.library import Library
    from spectra_dashboard.server import listen, serve

    library = Library(Path(options.folder))
    listening = listen(library, host=options.host, port=options.port, allow=options.allow_host)
    serve(listening, library, lambda line: print(line, flush=True))
    return 0

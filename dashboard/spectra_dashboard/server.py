"""Serving the dashboard: on loopback by default, on other addresses with a token."""

import logging
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from spectra.machine.libc import few_arenas, give_back
from spectra_dashboard.access.library import Library
from spectra_dashboard.guard import Guard, is_loopback
from spectra_data.errors import InputError

THREADS = 8
WARM_AFTER = 5.0
"""Seconds in which the first page has the machine to itself."""
EVERYWHERE = ("0.0.0.0", "::", "")


@dataclass(frozen=True)
class Listening:
    """A listening server, and the address to open."""

    server: Any
    address: str


def listen(
    library: Library, *, host: str = "127.0.0.1", port: int = 8050, allow: tuple[str, ...] = ()
) -> Listening:
    """Listen without serving yet.

    Parameters
    ----------
    library
        Stores and maps.
    host, port
        Address to listen on; port 0 picks a free one.
    allow
        Further names of the server, as behind a proxy.

    Raises
    ------
    InputError
        When it cannot listen there.
    """
    from spectra_dashboard.app import make_app
    from spectra_dashboard.connections import Server

    few_arenas()
    listening = _socket(host, port)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a page requests many figures
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    own = (socket.gethostname(), socket.getfqdn()) if host in EVERYWHERE else (host,)
    hosts = (*own, *allow)
    app = make_app(library, hosts=hosts, token=token)
    server = Server(app.server, listening, Guard(hosts, token), threads=THREADS)
    shown = own[0]
    if ":" in shown:
        shown = f"[{shown}]"
    query = f"?token={token}" if token else ""
    return Listening(server, f"http://{shown}:{listening.getsockname()[1]}/{query}")


def serve(listening: Listening, library: Library, said: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; `said` is called with the lines for the terminal."""
    count = len(library.runs)
    said(f"{count} {'store' if count == 1 else 'stores'} below {library.folder}")
    said(f"{listening.address}  (Ctrl-C stops)")
    warming = threading.Timer(WARM_AFTER, _warm)
    stop = threading.Event()
    for thread in (warming, threading.Thread(target=give_back, args=(stop,))):
        thread.daemon = True
        thread.start()
    try:
        listening.server.run()
    finally:
        warming.cancel()
        stop.set()
        listening.server.close()
    said("stopped")


def _socket(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen on {host}, port {port} ({reason}): name another with --port, or "
            "use --port 0 for any free port"
        ) from error
    return listening


def _warm() -> None:
    """Import the modules of the first figures while no request waits for them."""
    for module in ("spectra.analysis.similarity", "spectra.analysis.table"):
        import_module(module)

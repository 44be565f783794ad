"""Connections: requests are refused by their heads, and none keeps others waiting.

waitress reads whole requests before a thread answers them, so connections that send nothing hold no
thread; but they hold one of a limited number of connections, and bodies are kept on disk. So a
request that is refused is refused before its body, a body is small, a request arrives in time or
its connection is closed, and if connections run out, those of strangers that have waited longest
are closed.

A client that sends its body regardless would see the connection break instead of the answer, so
some of that body is read and thrown away after the answer.
"""

import contextlib
import socket
import time
from typing import Any

from flask import Flask
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher
from waitress.utilities import Error

from spectra_dashboard.guard import Guard, Head, Refusal
from spectra_dashboard.headers import headers_for

HEAD_BYTES = 64 << 10
BODY_BYTES = 4 << 20
"""Most bytes of a request's body; a page sends the names of its controls."""
THROWN_AWAY = {True: 64 << 20, False: 4 << 20}
"""Most bytes thrown away of a refused body: of admitted clients (True), and of others (False)."""
REQUEST_SECONDS = 15.0
"""Seconds within which a request must arrive whole."""
IDLE_SECONDS = 60.0
"""Seconds that a connection stays open between requests."""
UNREAD_SECONDS = 30.0
"""Seconds after which a connection is closed if its client reads no byte of an answer."""
CONNECTIONS = 400
"""Most connections at a time."""


class RefusedError(Error):  # type: ignore[misc]
    """The answer to a request that is refused by its head."""

    def __init__(self, refusal: Refusal, head: Head) -> None:
        self.code = refusal.status
        self.text, self.kind = refusal.content(head)

    def to_response(self, ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        reasons = {400: "Bad Request", 401: "Unauthorized", 413: "Content Too Large"}
        headers = {**headers_for()(""), "Content-Type": f"{self.kind}; charset=utf-8"}
        return f"{self.code} {reasons[self.code]}", list(headers.items()), self.text.encode()


class Request(HTTPRequestParser):  # type: ignore[misc]
    """A request that is complete after its head if it is refused."""

    error: Error | None
    body_rcv: Any
    content_length: int

    def __init__(self, adj: Any, connection: "Connection") -> None:
        super().__init__(adj)
        self._connection = connection

    def received(self, data: bytes) -> int:
        consumed: int = super().received(data)
        if self.error is not None:
            self.expect_continue = False  # else waitress would wait for the body
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        head = Head(self.command, self.query, self.headers)
        refusal = self._connection.server.watch.refusal(head)
        self._connection.known |= refusal is None
        if refusal is None and self.content_length > BODY_BYTES:
            refusal = Refusal(413, f"A request to this server has at most {BODY_BYTES} bytes.")
        if refusal is None:
            return
        self.error = RefusedError(refusal, head)
        if self.body_rcv is not None:
            self._connection.unread = THROWN_AWAY[refusal.status == 413]
            self.body_rcv, self.content_length = None, 0


class Connection(HTTPChannel):  # type: ignore[misc]
    """A connection that knows how long it has waited for a request."""

    known = False
    """Whether a request on it was admitted."""
    unread = 0
    """Bytes of a refused body that may yet be thrown away."""
    answered = False
    """Whether the answer to a refused body was sent."""

    def __init__(self, server: "Server", *given: Any, **more: Any) -> None:
        self.since = time.monotonic()
        """Time at which it was opened, or its last request began to arrive."""
        super().__init__(server, *given, **more)

    def parser_class(self, adj: Any) -> Request:
        return Request(adj, self)

    def received(self, data: bytes) -> bool:
        if self.request is None:
            self.since = time.monotonic()
        return bool(super().received(data))

    def readable(self) -> bool:
        return self.answered or bool(super().readable())

    def writable(self) -> bool:
        return not self.answered and bool(super().writable())

    def handle_read(self) -> None:
        if not self.answered:
            super().handle_read()
            return
        try:
            self.unread -= len(self.recv(1 << 16))  # closes the connection at its end
        except OSError:
            self.unread = 0
        if self.unread <= 0:
            self.handle_close()

    def handle_write(self) -> None:
        if not (self.unread and self.close_when_flushed):
            super().handle_write()
            return
        self._flush_exception(self._flush_some)
        if self.will_close:
            self.handle_close()
        elif not self.total_outbufs_len:
            self.answered = True
            with contextlib.suppress(OSError):  # the client is gone
                self.socket.shutdown(socket.SHUT_WR)

    @property
    def waits(self) -> bool:
        """Whether nothing is being done for it."""
        return not (self.requests or self.total_outbufs_len)

    def late(self, now: float) -> bool:
        """Whether it has waited too long: for a request, for the next one, or for its reader."""
        if self.total_outbufs_len:
            return bool(time.time() - self.last_activity > UNREAD_SECONDS)
        if self.requests:
            return False
        between = self.known and self.request is None and not self.answered
        return now - self.since > (IDLE_SECONDS if between else REQUEST_SECONDS)


class Server(TcpWSGIServer):  # type: ignore[misc]
    """waitress's server with these connections."""

    channel_class = Connection

    def __init__(
        self, application: Flask, listening: socket.socket, watch: Guard, *, threads: int
    ) -> None:
        adj = Adjustments(
            sockets=[listening],
            threads=threads,
            ident="spectra",
            clear_untrusted_proxy_headers=True,
            max_request_header_size=HEAD_BYTES,
            max_request_body_size=BODY_BYTES + 1,
            connection_limit=CONNECTIONS + 8,  # the server's own sockets count, too
            cleanup_interval=1,
            asyncore_use_poll=True,  # select is limited to 1024 files
        )
        self.watch = watch
        dispatcher = ThreadedTaskDispatcher()
        dispatcher.set_thread_count(threads)
        place = (listening.family, listening.type, listening.proto, listening.getsockname())
        super().__init__(
            application,
            {},
            True,
            listening,
            dispatcher=dispatcher,
            adj=adj,
            bind_socket=False,
            sockinfo=place,
        )

    def readable(self) -> bool:
        self._make_room()
        return bool(super().readable())

    def maintenance(self, now: float) -> None:
        """Close connections that are late; called once a second."""
        moment = time.monotonic()
        for connection in [c for c in self.active_channels.values() if c.late(moment)]:
            connection.handle_close()

    def _make_room(self) -> None:
        if len(self.active_channels) < CONNECTIONS:
            return
        waiting = [c for c in self.active_channels.values() if c.waits]
        for connection in sorted(waiting, key=lambda c: (c.known, c.since))[: CONNECTIONS // 8]:
            connection.handle_close()

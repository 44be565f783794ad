"""Connections: what is refused before it is read, and who does not keep others waiting."""

import contextlib
import socket
import threading

import pytest
from flask import Flask

from spectra_dashboard import connections
from spectra_dashboard.connections import BODY_BYTES, Server
from spectra_dashboard.guard import Guard

TOKEN = "a-token"
COOKIE = "{0.cookie}={0.kept}".format(Guard(token=TOKEN))


@contextlib.contextmanager
def served(token=None):
    """A server that answers with the size of a request's body."""
    application = Flask("sizes")

    @application.route("/", methods=["GET", "POST"])
    def size():
        from flask import request

        return str(len(request.data))

    @application.route("/large")
    def large():
        return b"0" * (32 << 20)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(application, listening, Guard(token=token), threads=2)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.task_dispatcher.shutdown(timeout=2)
            server.close()


def opened(server, *lines):
    """A connection that sent these lines of a head."""
    connection = socket.create_connection(("127.0.0.1", int(server.effective_port)), timeout=20)
    connection.sendall("\r\n".join(lines).encode())
    return connection


def everything(connection):
    """All bytes until the server closes the connection."""
    found = b""
    with connection:
        while part := connection.recv(65536):
            found += part
    return found


def answer_of(connection):
    """One answer without a body to speak of, on a connection that stays open."""
    found = b""
    while not found.endswith(b"\r\n\r\n0"):
        found += connection.recv(65536)
    return found


def post(*more):
    return ("POST / HTTP/1.1", "Host: 127.0.0.1", *more, "", "")


@pytest.mark.parametrize(
    "head",
    [
        ("Content-Length: 900000000",),
        ("Content-Length: 900000000", "Expect: 100-continue"),
        ("Transfer-Encoding: chunked",),
        ("Content-Length: 3", "Cookie: spectra=wrong"),
    ],
)
def test_without_the_token_no_byte_of_a_body_is_awaited(head):
    with served(TOKEN) as server:
        answer = everything(opened(server, *post(*head)))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"Connection: close" in answer
    assert b"Content-Security-Policy" in answer
    assert b"it has a token" in answer


def test_other_sites_are_refused_before_their_bodies():
    with served() as server:
        answer = everything(
            opened(server, *post("Content-Length: 9", "Origin: http://evil.example"))
        )
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("expects", [(), ("Expect: 100-continue",)])
def test_a_large_body_is_refused_before_it_is_sent(expects):
    length = f"Content-Length: {BODY_BYTES + 1}"
    with served(TOKEN) as server:
        answer = everything(opened(server, *post(length, f"Cookie: {COOKIE}", *expects)))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert f"at most {BODY_BYTES} bytes".encode() in answer


def test_who_sends_a_large_body_at_once_reads_the_reason():
    with served() as server:
        connection = opened(server, *post(f"Content-Length: {8 * BODY_BYTES}"))
        connection.sendall(bytes(8 * BODY_BYTES))
        assert everything(connection).startswith(b"HTTP/1.1 413 ")


def test_without_the_token_little_of_a_body_is_taken():
    with served(TOKEN) as server:
        connection = opened(server, *post("Content-Length: 900000000"))
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 900_000_000:
                sent += connection.send(bytes(1 << 20))
        connection.close()
    assert sent < 24 << 20  # the system's own buffers hold some of it


def test_a_body_that_grows_in_chunks_is_cut_off():
    with served() as server:
        connection = opened(server, *post("Transfer-Encoding: chunked"))
        chunk = b"100000\r\n" + b"0" * (1 << 20) + b"\r\n"
        with contextlib.suppress(OSError):  # closed while more is sent
            for _ in range(64):
                connection.sendall(chunk)
        with contextlib.suppress(OSError):
            assert everything(connection).startswith(b"HTTP/1.1 413 ")


def test_the_largest_body_is_answered():
    with served(TOKEN) as server:
        head = post(f"Content-Length: {BODY_BYTES}", f"Cookie: {COOKIE}", "Connection: close")
        connection = opened(server, *head)
        connection.sendall(b"0" * BODY_BYTES)
        assert everything(connection).endswith(str(BODY_BYTES).encode())


@pytest.mark.parametrize("sent", [(), ("GET / HTTP/1.1", "Host: 127.0.0.1", "X: "),
                                  post("Content-Length: 5")])  # fmt: skip
def test_a_request_that_does_not_arrive_is_not_awaited_for_long(monkeypatch, sent):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.0)
    with served() as server:
        assert everything(opened(server, *sent)) == b""


def test_a_request_that_arrives_byte_by_byte_is_late_too():
    with served() as server:
        connection = opened(server, "GET / HTTP/1.1", "Host: 127.0.0.1", "X: ")
        while not any(found.request for found in list(server.active_channels.values())):
            connection.send(b"a")
        (found,) = server.active_channels.values()
        begun = found.since
        for _ in range(100):
            connection.send(b"a")
        assert found.since == begun
        assert not found.late(begun + 1)
        assert found.late(begun + connections.REQUEST_SECONDS + 1)
        connection.close()


def test_an_answer_that_nobody_reads_is_dropped(monkeypatch):
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.5)
    with served() as server:
        unread = opened(server, "GET /large HTTP/1.1", "Host: 127.0.0.1", "", "")
        while True:
            try:
                unread.send(b"GET /large HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            except OSError:  # what was sent after it was closed
                break
        assert not server.active_channels
        unread.close()


def _is_answered(server, *head):
    try:
        return everything(opened(server, *head, "", "")).startswith(b"HTTP/1.1 200 ")
    except ConnectionError:  # it was itself among those that waited
        return False


def test_strangers_that_wait_make_room_for_others(monkeypatch):
    monkeypatch.setattr(connections, "CONNECTIONS", 16)
    with served(TOKEN) as server:
        own = opened(server, "GET / HTTP/1.1", "Host: 127.0.0.1", f"Cookie: {COOKIE}", "", "")
        assert answer_of(own).startswith(b"HTTP/1.1 200 ")
        crowd = [opened(server, "GET / HTTP/1.1", "X: ") for _ in range(64)]
        own.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {COOKIE}\r\n\r\n".encode())
        assert answer_of(own).startswith(b"HTTP/1.1 200 ")
        last = ("GET / HTTP/1.1", "Host: 127.0.0.1", f"Cookie: {COOKIE}", "Connection: close")
        assert any(_is_answered(server, *last) for _ in range(50))  # strangers are still coming
        for connection in (own, *crowd):
            connection.close()

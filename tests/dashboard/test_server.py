"""Who is answered, and how the server starts and stops."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest

from spectra.cli import main
from spectra_dashboard.access.library import Library
from spectra_dashboard.app import make_app
from spectra_dashboard.guard import is_loopback

TOKEN = "a-token"


@pytest.fixture(scope="module")
def local(folder):
    return make_app(Library(folder)).server.test_client()


@pytest.fixture
def remote(folder):
    return make_app(Library(folder), hosts=("lab.example",), token=TOKEN).server.test_client()


@pytest.mark.parametrize("host", ["127.0.0.1:8050", "localhost", "[::1]:8050", "LOCALHOST:1"])
def test_the_servers_own_names_are_answered(local, host):
    assert local.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[", "localhost@evil.example"],
)
def test_foreign_hosts_are_refused(local, host):
    for address in ("/", "/_dash-layout", "/map?run=scan.zarr", "/assets/address.js"):
        assert local.get(address, headers={"Host": host}).status_code == 400


def test_pages_of_other_sites_are_refused(local):
    host = {"Host": "localhost:8050"}
    assert local.get("/", headers=host | {"Origin": "http://localhost:8050"}).status_code == 200
    for origin in (
        "http://evil.example",
        "null",
        "http://localhost:9",
        "http://[::1",
        "http://[x]",
    ):
        assert local.get("/", headers=host | {"Origin": origin}).status_code == 400


def test_with_a_token_nothing_is_told_without_it(remote):
    named = {"Host": "lab.example"}
    for address in ("/", "/_dash-layout", "/map?run=scan.zarr", "/?token=wrong", "/?token=é"):
        assert remote.get(address, headers=named).status_code == 401
    answer = remote.get(f"/ranks?run=scan.zarr&token={TOKEN}", headers=named)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/ranks?run=scan.zarr")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert remote.get("/", headers=named | {"Cookie": cookie.split(";")[0]}).status_code == 200
    assert remote.get("/", headers={"Host": "other.example"}).status_code == 400
    assert remote.get("/", headers={"Host": "10.0.0.7"}).status_code == 401


def test_the_way_back_stays_on_this_server(remote):
    answer = remote.get(
        f"/?token={TOKEN}",
        headers={"Host": "lab.example"},
        environ_overrides={"PATH_INFO": "//evil.example/x"},
    )
    assert (answer.status_code, answer.headers["Location"]) == (302, "/evil.example/x")


def test_debugging_is_off(local):
    config = local.get("/").text
    assert '"ui":false' in config.replace(" ", "")
    assert local.get("/?__debugger__=yes&cmd=resource&f=style.css").text.startswith("<!DOCTYPE")


@pytest.mark.parametrize(
    ("host", "local_only"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("lab.example", False)],
)  # fmt: skip
def test_loopback_is_known(host, local_only):
    assert is_loopback(host) == local_only


def started(folder, *more):
    program = [sys.executable, "-m", "spectra.cli", "dashboard", str(folder), "--port", "0", *more]
    process = subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    lines = [process.stdout.readline(), process.stdout.readline()]
    return process, lines, re.search(r"http://\S+", lines[1])[0]


def test_the_command_serves_until_it_is_interrupted(folder):
    process, lines, address = started(folder)
    assert lines[0] == f"4 stores below {folder}\n"
    assert address.startswith("http://127.0.0.1:")
    assert urllib.request.urlopen(address).status == 200
    os.kill(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out, errors) == (0, "stopped\n", "")


class NoRedirect(urllib.request.HTTPErrorProcessor):
    def http_response(self, request, response):
        return response


def test_other_addresses_have_a_token(folder):
    process, _, address = started(folder, "--host", "0.0.0.0")
    try:
        base, _, token = address.partition("?token=")
        assert len(token) >= 32
        port = base.rstrip("/").rpartition(":")[2]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/")
        # the address that is printed, as if this machine's name led here
        named = {"Host": urllib.parse.urlsplit(address).netloc}
        kept = urllib.request.build_opener(NoRedirect).open(
            urllib.request.Request(f"http://127.0.0.1:{port}/?token={token}", headers=named)
        )
        assert kept.status == 302
        named["Cookie"] = kept.headers["Set-Cookie"].split(";")[0]
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers=named)
        assert urllib.request.urlopen(request).status == 200
    finally:
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=30)


def test_what_cannot_be_is_one_line(folder, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["dashboard", str(folder), "--port", port]) == 2
    assert main(["dashboard", str(tmp_path / "none")]) == 2
    assert main(["dashboard", str(folder), "--port", "70000"]) == 2
    assert main(["dashboard", str(folder), "--host", "no.such.host.invalid"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert "--port 0 for any free port" in said[0]

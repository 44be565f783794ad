"""Who is answered, and how the server starts and stops."""

import base64
import hashlib
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
from spectra_dashboard.guard import Guard, Head, is_loopback

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
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert remote.get("/", headers=named | {"Cookie": cookie.split(";")[0]}).status_code == 200
    assert remote.get("/", headers={"Host": "other.example"}).status_code == 400
    assert remote.get("/", headers={"Host": "10.0.0.7"}).status_code == 401


def test_the_token_is_no_cookie():
    watch = Guard(("lab.example",), TOKEN)
    for value, admitted in ((watch.kept, True), (TOKEN, False), ("", False)):
        sent = {"HOST": "lab.example", "COOKIE": f"{watch.cookie}={value}"}
        assert (watch.refusal(Head("GET", "", sent)) is None) == admitted


def test_servers_of_one_machine_have_cookies_of_their_own():
    one, other = Guard(token="a"), Guard(token="b")
    assert one.cookie != other.cookie
    assert one.kept != other.kept


def test_who_comes_from_another_page_with_a_strict_cookie_goes_on_by_a_link(remote):
    answer = remote.get("/", headers={"Host": "lab.example", "Accept": "text/html,*/*"})
    assert answer.status_code == 401
    assert "<a href=''>continue</a>" in answer.text


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate",
          "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate",
          "Sec-Fetch-Dest": "iframe"}, 400),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 400),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 400),
    ],
)  # fmt: skip
def test_what_a_browser_marks_as_another_sites_is_refused_unless_a_user_follows_a_link(
    local, sent, status
):
    named = {"Host": "localhost:8050"}
    assert local.get("/map?run=scan.zarr", headers=named | sent).status_code == status


def test_every_answer_says_what_a_browser_may_do_with_it(local):
    paths = ("/", "/ranks", "/map?run=scan.zarr", "/_dash-layout", "/map?run=none")
    answers = [local.get(path, headers={"Host": "localhost"}) for path in paths]
    answers.append(local.get("/", headers={"Host": "evil.example"}))
    for answer in answers:
        rules = dict(r.partition(" ")[::2] for r in
                     answer.headers["Content-Security-Policy"].split("; "))  # fmt: skip
        assert rules["default-src"] == "'none'"
        assert "unsafe" not in rules["script-src"]
        assert rules["frame-ancestors"] == "'self'"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    script = local.get("/assets/address.js", headers={"Host": "localhost"})
    assert script.headers["Cache-Control"] != "no-store"


def test_a_page_holds_only_scripts_that_its_policy_names(local):
    page = local.get("/", headers={"Host": "localhost"})
    held = re.findall(
        r"<script(?![^>]*(?:src=|application/json))[^>]*>(.*?)</script>", page.text, re.S
    )
    assert len(held) == 2
    for script in held:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{}", b"[" * 100_000, b'{"output":"x"}', b"\xff",
             b'{"output":"none.x","outputs":{"id":"none","property":"x"},"inputs":[]}'],
)  # fmt: skip
def test_what_no_page_sends_is_refused_in_a_line(local, body, caplog):
    sent = {"Host": "localhost", "Content-Type": "application/json"}
    answer = local.post("/_dash-update-component", data=body, headers=sent)
    assert answer.status_code == 400
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", ["/_dash-component-suites/os/x", "/assets/none.js",
                                  "/_dash-component-suites/spectra/cli.py"])  # fmt: skip
def test_what_is_not_there_is_not_found(local, path, caplog):
    assert local.get(path, headers={"Host": "localhost"}).status_code == 404
    assert not caplog.records


def test_an_address_with_too_many_fields_is_refused_in_a_line(local, remote):
    fields = "&".join(f"a{i}=1" for i in range(300))
    answer = local.get(f"/map?run=scan.zarr&{fields}", headers={"Host": "localhost"})
    assert (answer.status_code, answer.text.count("\n")) == (400, 1)
    answer = remote.get(f"/?token={TOKEN}&{fields}", headers={"Host": "lab.example"})
    assert answer.status_code == 401


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

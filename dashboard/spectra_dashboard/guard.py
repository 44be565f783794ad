"""Access to the server: for its own pages only, and with a token if other machines reach it.

A page of another site can make a browser send requests to a server on the same machine. Such
requests name that site in their Host (if its name was pointed here), in their Origin, or are marked
by the browser as another site's, and are refused. What decides is the head of a request alone, so
that `connections` refuses one before it reads a body.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from flask import Flask, Response, redirect, request
from werkzeug.sansio.http import parse_cookie
from werkzeug.sansio.utils import host_is_trusted

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OWN_SITES = ("", "none", "same-origin")
"""Values of Sec-Fetch-Site that the user's own pages and typed addresses have; old browsers and
browsers of addresses without TLS send none."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Head:
    """The head of a request, which shows who sent it."""

    method: str
    query: str
    headers: Mapping[str, str]
    """Headers by upper-case names with underscores, as in WSGI without its prefix."""

    def header(self, name: str) -> str:
        return self.headers.get(name, "")


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    reason: str

    def content(self, head: Head) -> tuple[str, str]:
        """Text and media type of the answer: a page if a browser shows it."""
        if self.status != 401 or "text/html" not in head.header("ACCEPT"):
            return f"{self.reason}\n", "text/plain"
        # a browser keeps a strict cookie back while it follows a link of another site
        again = "If you have just opened it from another page, <a href=''>continue</a>."
        return (
            f"<!DOCTYPE html><html lang='en'><title>spectra</title><p>{escape(self.reason)}</p>"
            f"<p>{again}</p></html>\n"
        ), "text/html"


@dataclass(frozen=True)
class Guard:
    """Judges requests by their heads.

    Parameters
    ----------
    hosts
        Names that requests may be for, in addition to those of loopback. With a token also any IP
        address: a page cannot make a browser send the token there.
    token
        Token, which the browser sends once as ``?token=``; it then keeps a cookie that was derived
        from the token, and does not reveal it.
    """

    hosts: Collection[str] = ()
    token: str | None = None
    cookie: str = field(init=False)
    """Name of the cookie. Cookies ignore ports: two servers on one machine must not accept each
    other's."""
    kept: str = field(init=False)
    """Value of the cookie."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cookie", f"spectra_{self._derived('name')[:12]}")
        object.__setattr__(self, "kept", self._derived("cookie"))

    def refusal(self, head: Head) -> Refusal | None:
        """The reason why a request is not answered; None if it is."""
        host = head.header("HOST").lower()
        if not self._known(host):
            return Refusal(400, "This server answers only requests for its own address.")
        origin = head.header("ORIGIN")
        if origin and _authority(origin) not in (host, _without_usual_port(host)):
            return Refusal(400, "This server answers only its own pages.")
        if head.header("SEC_FETCH_SITE") not in OWN_SITES and not _is_link(head):
            return Refusal(400, "This server answers only its own pages.")
        if self.token is None or self.enters(head):
            return None
        given = parse_cookie(head.header("COOKIE")).getlist(self.cookie)
        if any(hmac.compare_digest(value.encode(), self.kept.encode()) for value in given):
            return None
        return Refusal(401, "Open the address that `spectra dashboard` printed: it has a token.")

    def enters(self, head: Head) -> bool:
        """Whether a request has the token in its address."""
        if self.token is None or "token" not in head.query:
            return False
        try:
            given = parse_qs(head.query, max_num_fields=200).get("token", [""])[0]
        except ValueError:  # too many fields
            return False
        return hmac.compare_digest(given.encode(errors="replace"), self.token.encode())

    def _known(self, given: str) -> bool:
        allowed = {*LOOPBACK, *(host.lower() for host in self.hosts)}
        names = {host for host in allowed if not _is_ip(host)}
        if host_is_trusted(given, names):
            return True
        # Flask compares addresses as text, and does not know IPv6
        address = _address_in(given)
        known = address in {ipaddress.ip_address(host) for host in allowed - names}
        return known or (self.token is not None and address is not None)

    def _derived(self, purpose: str) -> str:
        return hmac.new((self.token or "").encode(), purpose.encode(), hashlib.sha256).hexdigest()


def guard(server: Flask, watch: Guard, headers: Callable[[str], Mapping[str, str]]) -> None:
    """Refuse what a guard refuses, and add headers to every answer.

    Parameters
    ----------
    server
        Server that answers the requests.
    watch
        Guard that judges them.
    headers
        Headers of an answer by the path of its request; the answer's own have precedence.
    """

    @server.before_request
    def check() -> Any:
        head = head_of(request.environ)
        if (refused := watch.refusal(head)) is not None:
            text, kind = refused.content(head)
            return Response(text, status=refused.status, mimetype=kind)
        if not watch.enters(head):
            return None
        rest = {name: values for name, values in request.args.lists() if name != "token"}
        answer = redirect(_address(request.path, rest))
        answer.set_cookie(watch.cookie, watch.kept, httponly=True, samesite="Strict", path="/")
        return answer

    @server.after_request
    def harden(answer: Response) -> Response:
        for name, value in headers(request.path).items():
            answer.headers.setdefault(name, value)
        return answer


def head_of(environ: Mapping[str, Any]) -> Head:
    """The head of a request in WSGI's environment."""
    headers = {
        name.removeprefix("HTTP_"): str(value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    return Head(environ["REQUEST_METHOD"], environ.get("QUERY_STRING", ""), headers)


def _is_link(head: Head) -> bool:
    """Whether a user follows a link, or opens the address in another way."""
    navigates = head.header("SEC_FETCH_MODE") == "navigate"
    return head.method == "GET" and navigates and head.header("SEC_FETCH_DEST") == "document"


def _address(path: str, query: dict[str, list[str]]) -> str:
    # exactly one slash, so that the address stays on this server
    return "/" + quote(path.lstrip("/")) + (f"?{urlencode(query, doseq=True)}" if query else "")


def _authority(origin: str) -> str | None:
    """Host and port of an origin; None if it is not one."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _without_usual_port(host: str) -> str:
    return host.removesuffix(":80").removesuffix(":443")


def _address_in(given: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """IP address of a Host; None if it is a name or invalid."""
    try:
        return ipaddress.ip_address(urlsplit(f"//{given}").hostname or "")
    except ValueError:
        return None


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

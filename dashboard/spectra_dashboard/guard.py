"""Access to the server: for its own pages only, and with a token if other machines reach it.

A page of another site can make a browser send requests to a server on the same machine. Such
requests name that site in their Host (if its name was pointed here) or in their Origin, and are
refused.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Collection
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from flask import Flask, Response, redirect, request
from werkzeug.sansio.utils import host_is_trusted

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def guard(server: Flask, hosts: Collection[str], token: str | None) -> None:
    """Refuse requests for other hosts and, if there is a token, requests without it.

    Parameters
    ----------
    server
        Server that answers the requests.
    hosts
        Names that requests may be for, in addition to those of loopback. With a token also any IP
        address: a page cannot make a browser send the token there.
    token
        Token, which the browser sends once as ``?token=`` and then keeps in a cookie.
    """
    allowed = {*LOOPBACK, *(host.lower() for host in hosts)}
    names = {host for host in allowed if not _is_ip(host)}
    addresses = {ipaddress.ip_address(host) for host in allowed - names}
    # cookies ignore ports: two servers on one machine must not accept each other's
    cookie = f"spectra_{hashlib.sha256((token or '').encode()).hexdigest()[:12]}"

    def known(given: str) -> bool:
        if host_is_trusted(given, names):
            return True
        address = _address_in(given)  # Flask compares addresses as text, and does not know IPv6
        return address in addresses or (token is not None and address is not None)

    @server.before_request
    def check() -> Any:
        if not known(request.headers.get("Host", "").lower()):
            return _refusal(400, "This server answers only requests for its own address.")
        origin = request.headers.get("Origin")
        if origin and _authority(origin) != request.host.lower():
            return _refusal(400, "This server answers only its own pages.")
        if token is None:
            return None
        given = request.args.get("token")
        if given is not None and hmac.compare_digest(given.encode(), token.encode()):
            rest = {name: values for name, values in request.args.lists() if name != "token"}
            answer = redirect(_address(request.path, rest))
            answer.set_cookie(cookie, token, httponly=True, samesite="Lax", path="/")
            return answer
        kept = request.cookies.get(cookie, "")
        if hmac.compare_digest(kept.encode(), token.encode()):
            return None
        return _refusal(401, "Open the address that `spectra dashboard` printed: it has a token.")

    @server.after_request
    def harden(answer: Response) -> Response:
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer


def _address(path: str, query: dict[str, list[str]]) -> str:
    # exactly one slash, so that the address stays on this server
    return "/" + quote(path.lstrip("/")) + (f"?{urlencode(query, doseq=True)}" if query else "")


def _authority(origin: str) -> str | None:
    """Host and port of an origin; None if it is not one."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


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


def _refusal(status: int, reason: str) -> Response:
    return Response(reason + "\n", status=status, mimetype="text/plain")

"""Rank maps as files: the same bytes that `spectra allocate` and `spectra export` write."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from flask import Flask, Response, request

from spectra.allocation.rankmap import RankMap
from spectra.allocation.target import Target
from spectra.exports.formats import FORMATS
from spectra_dashboard.access.library import Library
from spectra_dashboard.view import View, choices
from spectra_data.errors import InputError

ADDRESS = "/map"


def register(server: Flask, library: Library) -> None:
    """Serve maps as files."""

    @server.get(ADDRESS)
    def download() -> Response:
        try:
            kind = request.args.get("format", "json")
            content = made(library, request.args, kind)
        except InputError as error:
            return Response(f"{error}\n", status=400, mimetype="text/plain")
        answer = Response(content, mimetype="application/octet-stream")
        answer.headers.set("Content-Disposition", "attachment", filename=file_name(kind))
        answer.headers["Cache-Control"] = "no-store"
        return answer


def made(library: Library, query: Mapping[str, str], kind: str) -> bytes:
    """File of the map of a view, or of a stored map.

    Raises
    ------
    InputError
        For an unknown format, store or map, or a target that cannot be reached.
    """
    if kind not in FORMATS:
        raise InputError(f"no format {kind!r}; there are: {', '.join(FORMATS)}")
    content = FORMATS[kind].make(_map(library, query))
    return content if isinstance(content, bytes) else content.encode()


def file_name(kind: str) -> str:
    """Name of the file."""
    if kind == "peft":
        return "adapter_config.json"
    return "map.json" if kind == "json" else f"map-{kind}{FORMATS[kind].suffix}"


def _map(library: Library, query: Mapping[str, str]) -> RankMap:
    if name := query.get("map"):
        return library.map(name)
    fields = {n: v for n, v in query.items() if n not in ("format", "map")}
    view = View.from_address(None, urlencode(fields))
    for name, value in fields.items():
        known: Any = getattr(view, name, None)
        if known is None or (isinstance(known, str) and known != value):
            listed = choices(name)
            there = f"; there are: {', '.join(listed)}" if listed else ""
            raise InputError(f"no {name} {value!r}{there}")
    target = Target.read(view.target, fields.get("value", str(view.value)))
    return library.run(view.run).rank_map(view.method, target, view.storage, view.step)

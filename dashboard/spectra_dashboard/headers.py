"""Headers of every answer: what a browser may do with it, run in it, and keep of it."""

from collections.abc import Callable, Iterable, Mapping

from spectra.report.encoding import hash_of_script

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self'",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'self'",
}
"""Content-Security-Policy. Plotly, Mantine and AG Grid write style elements, plotly makes images
from data and blobs, and AG Grid's font is data; scripts are this server's, and those named by their
hashes."""
CODE = ("/assets/", "/_dash-component-suites/", "/_favicon.ico")
"""Paths whose answers are the same for everyone and may be kept: scripts, styles, the icon."""


def headers_for(scripts: Iterable[str] = ()) -> Callable[[str], Mapping[str, str]]:
    """Function from a path to the headers of its answer.

    Parameters
    ----------
    scripts
        Texts of a page's inline scripts.
    """
    named = "".join(f" {hash_of_script(script)}" for script in scripts)
    rules = {
        name: value + (named if name == "script-src" else "") for name, value in POLICY.items()
    }
    always = ALWAYS | {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in rules.items())
    }

    def headers(path: str) -> Mapping[str, str]:
        kept = path.startswith(CODE)
        return always if kept else {**always, "Cache-Control": "no-store"}

    return headers

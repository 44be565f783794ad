"""The page itself: assemble and write it."""

import html
import json
import re
from importlib.resources import files
from pathlib import Path

import xarray as xr

from spectra.quantities import QUANTITIES
from spectra.report.encoding import as_script, hash_of_script
from spectra.report.facts import facts
from spectra.report.payload import payload
from spectra.store.destination import require_writable, write_result
from spectra.store.location import address_of
from spectra.store.reader import Store, takes_store
from spectra_data.errors import InputError

SCRIPTS = ("ranks.js", "report-figures.js", "report-ranks.js", "report.js")
"""The page's scripts in the order in which they run, in one script element."""

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'; script-src"
)
"""Content-Security-Policy, without the hashes of the page's scripts: nothing else runs, and nothing
is fetched or sent."""


def write_report(store: Store, out: str | Path) -> int:
    """Write the report of a store; return its size in bytes.

    Parameters
    ----------
    store
        A run or a scan, opened or by its address.
    out
        The file to write; it replaces an earlier one only once it is complete.

    Raises
    ------
    InputError
        When there is no such store, it has no snapshot yet, or `out` cannot be written.
    """
    require_writable(out)
    name = address_of(store) if isinstance(store, xr.DataTree) else str(store)
    page = takes_store(report_html)(store, name=name or "in memory")
    content = page.encode(errors="xmlcharrefreplace")  # names may hold lone surrogates
    write_result(out, content)
    return len(content)


def report_html(run: xr.DataTree, *, name: str) -> str:
    """The report of an opened store as one page; `name` is the store's address."""
    if run["spectra"].sizes["step"] == 0:
        raise InputError("the store has no snapshot yet: the first one is taken at the first step")
    from plotly.offline import get_plotlyjs

    assets = files("spectra") / "assets"
    plotly = get_plotlyjs()
    script = "\n".join((assets / name).read_text("utf-8") for name in SCRIPTS)
    fields = {
        "policy": " ".join((POLICY, hash_of_script(plotly), hash_of_script(script))),
        "title": html.escape(_title(run, name)),
        "facts": _facts_html(run, name),
        "style": (assets / "report.css").read_text("utf-8"),
        "others": _others_html(run),
        "plotly": plotly,
        "payload": as_script(payload(run)),
        "script": script,
    }
    # in one pass, so that no text of a run is mistaken for a field
    return re.sub(
        r"\{\{(\w+)\}\}",
        lambda match: fields[match[1]],
        (assets / "report.html").read_text("utf-8"),
    )


def _others_html(run: xr.DataTree) -> str:
    """Sections of the recorded quantities other than gradients and weights."""
    held = run["spectra"].to_dataset().data_vars
    return "".join(
        f'<section class="over-training">\n<h2>Spectra of {quantity.noun}</h2>\n'
        f'<p class="lead">{html.escape(quantity.about)} Leading singular values, one row per '
        f'snapshot.</p>\n<div class="panels" data-kind="{name}"></div>\n</section>\n'
        for name, quantity in QUANTITIES.items()
        if name not in ("gradient", "weight") and name in held
    )


def _title(run: xr.DataTree, name: str) -> str:
    model = run.attrs.get("model") or {}
    what = "gradients and weights over training"
    if run.attrs.get("kind") == "scan":
        what = "spectra of its weights"
    return f"{model.get('name', name)}: {what}"


def _facts_html(run: xr.DataTree, name: str) -> str:
    rows = "".join(
        f"<div><dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd></div>"
        for term, text in facts(run, name).items()
    )
    config = run.attrs.get("config")
    details = (
        f"<details><summary>Configuration</summary><pre>"
        f"{html.escape(json.dumps(config, indent=2))}</pre></details>"
        if config
        else ""
    )
    return f"<dl>{rows}</dl>{details}"

"""The application: its frame, and which page an address shows."""

import logging
from collections.abc import Collection
from typing import Any

import dash_mantine_components as dmc
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from dashboard import downloads, parts
from dashboard.access.library import Library
from dashboard.access.summary import summary
from dashboard.guard import guard
from dashboard.pages import PAGES
from dashboard.view import View
from data.errors import InputError
from spectra.figures.theme import ACCENT, FONT

TICK = 2_000
"""Milliseconds between questions for news."""
TITLES = {
    "runs": "Runs",
    "dynamics": "Dynamics",
    "tails": "Tails",
    "ranks": "Ranks",
    "path": "Path",
    "compare": "Compare",
}
_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<title>{%title%}</title>{%favicon%}{%css%}
<script>
document.documentElement.dataset.mantineColorScheme =
  JSON.parse(localStorage.getItem("mantine-color-scheme-value") ?? "null")
  ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
</script>
</head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""


def make_app(library: Library, *, hosts: Collection[str] = (), token: str | None = None) -> Dash:
    """The application over a library.

    Parameters
    ----------
    library
        Stores and maps.
    hosts
        Names that requests may be for, beside those of this machine's own address.
    token
        What requests have to bring, where other machines reach the server.
    """
    app = Dash(
        "dashboard",
        title="spectra",
        update_title="",
        suppress_callback_exceptions=True,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
        index_string=_FRAME,
        serve_locally=True,
        on_error=_failed,
    )
    app.enable_dev_tools(debug=False, dev_tools_hot_reload=False)
    guard(app.server, hosts, token)
    downloads.register(app.server, library)
    app.layout = _frame()
    _route(app, library)
    _news(app, library)
    for page in PAGES.values():
        page.register(app, library)
    return app


def _frame() -> dmc.MantineProvider:
    links = [
        dcc.Link(title, href=View(page=name).address(), id={"nav": name}, className="nav")
        for name, title in TITLES.items()
    ]
    return dmc.MantineProvider(
        [
            dcc.Location(id="address", refresh=False),
            dcc.Interval(id="tick", interval=TICK),
            dcc.Store(id="shown"),
            dcc.Store(id="news"),
            dcc.Store(id="snapshots"),
            dcc.Store(id="rested"),
            html.A("Skip to the page", href="#page", className="skip"),
            html.Header(
                [
                    dcc.Link("spectra", href="/", className="brand"),
                    html.Nav(links, **parts.attributes(aria_label="Pages")),
                    dmc.ColorSchemeToggle(
                        lightIcon="☀",
                        darkIcon="☾",
                        variant="subtle",
                        color="gray",
                        size="md",
                        id="theme",
                        **parts.attributes(aria_label="Light or dark"),
                    ),
                ]
            ),
            html.Main(id="page", tabIndex="-1", children=parts.loading()),
        ],
        id="provider",
        defaultColorScheme="auto",
        theme={
            "fontFamily": FONT,
            "headings": {"fontFamily": FONT},
            "primaryColor": "spectra",
            "primaryShade": {"light": 6, "dark": 4},
            "colors": {"spectra": _SHADES},
            "defaultRadius": "md",
            "cursorType": "pointer",
        },
    )


_SHADES = [
    "#eef4fa",
    "#dbe7f2",
    "#b5cee5",
    "#8db4d7",
    "#7fb0dd",
    "#4f86b5",
    ACCENT,
    "#284f75",
    "#214161",
    "#19334d",
]


def _route(app: Dash, library: Library) -> None:
    @app.callback(
        Output("page", "children"),
        Output("shown", "data"),
        Input("address", "pathname"),
        Input("address", "search"),
        State("shown", "data"),
    )
    def show(pathname: str, search: str, shown: Any) -> Any:
        view = View.from_address(pathname, search)
        page = PAGES.get(view.page)
        key = [view.page, *(page.key(view) if page else ())]
        if key == shown:
            raise PreventUpdate
        if page is None:
            return parts.card("There is no such page", "The pages are named above."), key
        try:
            return page.layout(library, view), key
        except InputError as error:
            return parts.broken(library, view, str(error)), key
        except Exception as error:  # a store's own words may be anything
            _failed(error)
            return parts.broken(library, view, f"{view.run} cannot be understood"), key

    app.clientside_callback(
        ClientsideFunction("spectra", "sync"),
        Output("address", "search"),
        Output({"control": ALL}, "value"),
        Input("address", "search"),
        Input({"control": ALL}, "value"),
        State({"control": ALL}, "id"),
        State("defaults", "data", allow_optional=True),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("spectra", "navigation"),
        Output({"nav": ALL}, "href"),
        Output({"nav": ALL}, "className"),
        Input("address", "pathname"),
        Input("address", "search"),
        Input("shown", "data"),
        State({"nav": ALL}, "id"),
    )


def _news(app: Dash, library: Library) -> None:
    @app.callback(
        Output("news", "data"),
        Input("tick", "n_intervals"),
        Input("shown", "data"),
        State("address", "pathname"),
        State("address", "search"),
        State("news", "data"),
    )
    def news(ticks: int, shown: Any, pathname: str, search: str, known: Any) -> Any:
        """What is new in the run shown: nothing is sent where nothing is."""
        view = View.from_address(pathname, search)
        if not view.run or view.page in ("runs", "compare", "missing"):
            return None if known else no_update
        try:
            found = summary(library.run(view.run))
            steps = library.run(view.run).steps()
        except InputError:
            raise PreventUpdate from None
        first = known["count"] if known and known["run"] == view.run else 0
        told = {
            "run": view.run,
            "count": found.snapshots,
            "train_step": found.train_step,
            "state": found.state,
            "updated": round(found.updated),
            "step": found.step,
            "steps": found.steps,
        }
        if known and told == {name: known.get(name) for name in told}:
            raise PreventUpdate
        if first > found.snapshots:  # taken back, as when a run is resumed
            first = 0
        new = steps[first : found.snapshots].tolist()
        return told | {"first": first, "new": new}

    app.clientside_callback(
        ClientsideFunction("spectra", "status"),
        Output("status", "children"),
        Input("news", "data"),
        Input("tick", "n_intervals"),
        Input("address", "search"),
        Input("rested", "data"),
    )
    app.clientside_callback(
        ClientsideFunction("spectra", "snapshots"),
        Output("snapshots", "data"),
        Input("news", "data"),
        State("snapshots", "data"),
    )
    app.clientside_callback(
        ClientsideFunction("spectra", "pause"),
        Output("tick", "disabled"),
        Input("live", "checked"),
    )


def _failed(error: Exception) -> Any:
    """A callback that failed keeps what is shown; the reason is in the terminal."""
    known = isinstance(error, InputError)
    logging.getLogger("dashboard").error(
        "a page could not be updated: %s", error, exc_info=None if known else error
    )
    return no_update

"""The application: its frame, and the page for an address."""

from collections.abc import Collection
from typing import Any

import dash_mantine_components as dmc
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update
from dash.exceptions import PreventUpdate

from spectra.figures.theme import ACCENT, FONT
from spectra_dashboard import components, downloads
from spectra_dashboard.access.library import Library
from spectra_dashboard.access.summary import summary
from spectra_dashboard.address import view_at
from spectra_dashboard.connections import BODY_BYTES
from spectra_dashboard.faults import log, refused
from spectra_dashboard.guard import Guard, guard
from spectra_dashboard.headers import headers_for
from spectra_dashboard.registry import PAGES, Page, runs_needed
from spectra_dashboard.view import View
from spectra_data.errors import InputError

TICK = 2_000
"""Milliseconds between requests for news."""
KERNEL = {"namespace": "spectra", "relative_package_path": "assets/ranks.js"}
"""The script that the report shares with those of `assets/`, served from the library."""
_THEME = """
{
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const chosen = (localStorage.getItem("mantine-color-scheme-value") ?? "").replace(/"/g, "");
  document.documentElement.dataset.mantineColorScheme =
    ["light", "dark"].includes(chosen) ? chosen : system;
}
"""
"""Script that sets the theme before anything is painted."""
_FRAME = f"""<!DOCTYPE html>
<html lang="en">
<head>{{%metas%}}<title>{{%title%}}</title>{{%favicon%}}{{%css%}}
<script>{_THEME}</script>
</head>
<body>{{%app_entry%}}<footer>{{%config%}}{{%scripts%}}{{%renderer%}}</footer></body>
</html>"""


def make_app(library: Library, *, hosts: Collection[str] = (), token: str | None = None) -> Dash:
    """The application over a library.

    Parameters
    ----------
    library
        Stores and maps.
    hosts
        Names that requests may be for, in addition to this machine's own address.
    token
        Token that requests need if other machines reach the server.
    """
    app = Dash(
        __name__.partition(".")[0],
        title="spectra",
        update_title="",
        suppress_callback_exceptions=True,
        meta_tags=[{"name": "viewport", "content": "width=device-width, initial-scale=1"}],
        index_string=_FRAME,
        serve_locally=True,
        on_error=_failed,
    )
    app.scripts.append_script(KERNEL)
    app.enable_dev_tools(debug=False, dev_tools_hot_reload=False)
    app.server.config["MAX_CONTENT_LENGTH"] = BODY_BYTES
    app.server.register_error_handler(Exception, refused)
    downloads.register(app.server, library)
    app.layout = _frame()
    _route(app, library)
    _news(app, library)
    for name in PAGES:
        PAGES[name].register(app, library)
    # Dash's own script is known once every callback is registered
    guard(app.server, Guard(hosts, token), headers_for([_THEME, app.renderer]))
    return app


def _frame() -> dmc.MantineProvider:
    links = [
        dcc.Link(
            PAGES[name].title, href=View(page=name).address(), id={"nav": name}, className="nav"
        )
        for name in PAGES
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
                    html.Nav(links, **components.attributes(aria_label="Pages")),
                    dmc.ColorSchemeToggle(
                        lightIcon="☀",
                        darkIcon="☾",
                        variant="subtle",
                        color="gray",
                        size="md",
                        id="theme",
                        **components.attributes(aria_label="Light or dark"),
                    ),
                ]
            ),
            html.Main(id="page", tabIndex="-1", children=components.loading()),
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
        Input("snapshots", "data"),
        State("rested", "data"),
        State("shown", "data"),
    )
    def show(pathname: str, search: str, snapshots: Any, rested: Any, shown: Any) -> Any:
        # a slider at rest is in the address of the window, which Dash does not know
        if ctx.triggered_id == "snapshots" and rested:
            search = rested["search"]
        view = view_at(library, pathname, search)
        if view.page not in PAGES:
            return components.card("There is no such page", "The pages are named above."), [
                view.page
            ]
        page = PAGES[view.page]
        if page.needs and not library.runs:
            return components.nothing_here(), [view.page, "nothing"]
        key = [view.page, *page.key(view), *_state(library, view, page)]
        if key == shown:
            raise PreventUpdate
        try:
            return page.layout(library, view), key
        except InputError as error:
            return components.broken(library, view, str(error)), key
        except Exception as error:  # attributes of a store may hold anything
            log("a page could not be laid out", error)
            return components.broken(library, view, f"{view.run} cannot be understood"), key

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
        """News of the run shown; without news, sends nothing."""
        view = view_at(library, pathname, search)
        if not view.run or runs_needed(view.page) != 1:
            return None if known else no_update
        current = {"run": view.run, **_progress(library, view.run)}
        if known and current == {name: known.get(name) for name in current}:
            raise PreventUpdate
        first, steps = 0, _steps(library, view.run)[: current["count"]]
        if known and known["run"] == view.run and known["count"] <= len(steps):
            kept = known["count"]
            # a run taken back, as when it is resumed, is another run to the page
            first = kept if kept and steps[kept - 1] == known["step"] else 0
        return current | {"first": first, "new": steps[first:]}

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


def _progress(library: Library, run: str) -> dict[str, Any]:
    """Progress of a run, or that it is gone or cannot be read."""
    try:
        found = summary(library.run(run))
    except InputError:
        return {"state": "gone", "count": 0, "step": None, "updated": 0}
    return {
        "count": found.snapshots,
        "train_step": found.train_step,
        "state": found.state,
        "updated": round(found.updated),
        "step": found.step,
        "steps": found.steps,
    }


def _steps(library: Library, run: str) -> list[int]:
    try:
        return [int(step) for step in library.run(run).steps()]
    except InputError:
        return []


def _state(library: Library, view: View, page: Page) -> list[Any]:
    """State of a run that a layout depends on: whether it has snapshots, and which is the last."""
    if not page.needs:
        return []
    try:
        steps = library.run(view.run).steps()
    except InputError as error:
        return [str(error)]
    if not len(steps):
        return [False]
    return [int(steps[-1])] if page.follows(view) else [True]


def _failed(error: Exception) -> Any:
    """Keep the page as it is when a callback fails, and log the reason."""
    log("a page could not be updated", error)
    raise PreventUpdate from error

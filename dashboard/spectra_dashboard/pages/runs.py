"""Runs: every store and rank map below the folder, and how far each is."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from spectra_dashboard import components
from spectra_dashboard.access.library import Library
from spectra_dashboard.access.summary import Summary, summary
from spectra_dashboard.registry import Page, opening
from spectra_dashboard.view import View
from spectra_data.errors import InputError

COLUMNS = [
    {"field": "label", "headerName": "run", "cellRenderer": "RunLink", "minWidth": 150, "flex": 2,
     "pinned": "left"},
    {"field": "state", "headerName": "state", "cellRenderer": "RunState", "minWidth": 116},
    {"field": "model", "headerName": "model", "minWidth": 110},
    {"field": "data", "headerName": "data", "minWidth": 120},
    {"field": "progress", "headerName": "steps", "cellRenderer": "RunProgress", "minWidth": 124,
     "type": "numericColumn"},
    {"field": "sparks", "headerName": "loss over steps", "cellRenderer": "RunSparks",
     "cellDataType": False, "sortable": False, "minWidth": 140},
    {"field": "loss", "headerName": "loss", "type": "numericColumn", "minWidth": 80,
     "valueFormatter": {"function": "params.value == null ? '' : d3.format('.3f')(params.value)"}},
    {"field": "validation_loss", "headerName": "validation", "type": "numericColumn",
     "minWidth": 104,
     "valueFormatter": {"function": "params.value == null ? '' : d3.format('.3f')(params.value)"}},
    {"field": "tokens", "headerName": "tokens", "type": "numericColumn", "minWidth": 88,
     "valueFormatter": {"function": "params.value == null ? '' : d3.format('.3~s')(params.value)"}},
    {"field": "updated", "headerName": "last news", "type": "numericColumn", "minWidth": 112,
     "valueFormatter": {"function": "ago(params.value)"}},
]  # fmt: skip
MAPS = ("name", "model", "method", "err", "budget", "lrc", "nlrc")


def layout(library: Library, view: View) -> html.Div:
    """The table of runs, or what to do if it is empty."""
    rows = [row(found) for found in _summaries(library)]
    grid = components.table(
        rows,
        COLUMNS,
        id="runs",
        getRowId="params.data.name",
        options={
            "rowSelection": {
                "mode": "multiRow",
                "enableClickSelection": False,
                "headerCheckbox": False,
            },
            "selectionColumnDef": {"pinned": "left", "width": 46},
            "rowHeight": 46,
            "domLayout": "autoHeight",
            "suppressColumnVirtualisation": False,
        },
    )
    return html.Div(
        [
            html.Div(
                [
                    html.Div(
                        [
                            html.H1(PAGE.title),
                            html.P(_counted(library), className="lead", id="runs-count"),
                        ]
                    ),
                    html.Div(
                        [
                            components.live_switch(),
                            dcc.Link(
                                "Compare two runs",
                                href=View(page="compare").address(),
                                id="compare-chosen",
                                className="action",
                            ),
                        ],
                        className="of-run",
                    ),
                ],
                className="head",
            ),
            html.Div(_empty(library), id="runs-none"),
            html.Div(grid, id="runs-some", hidden=not rows),
            html.Div(_maps(library), id="runs-maps"),
            dcc.Store(id="runs-known", data={r["name"]: _stamp(r) for r in rows}),
            dcc.Store(id="maps-known", data=list(library.maps)),
        ]
    )


def row(found: Summary) -> dict[str, Any]:
    """A run as a row of the table."""
    return asdict(found) | {
        "sparks": list(found.sparks),
        "updated": round(found.updated),
        "progress": found.train_step if found.train_step is not None else found.step,
        "href": View(page=opening(found.kind), run=found.name).address(),
    }


def register(app: Dash, library: Library) -> None:
    """Add the callbacks that update changed rows at every tick."""

    @app.callback(
        Output("runs", "rowTransaction"),
        Output("runs-known", "data"),
        Output("runs-count", "children"),
        Output("runs-none", "children"),
        Output("runs-some", "hidden"),
        Input("tick", "n_intervals"),
        State("runs-known", "data"),
        prevent_initial_call=True,
    )
    def changed(ticks: int, known: dict[str, Any]) -> Any:
        rows = [row(found) for found in _summaries(library)]
        transaction = changes(rows, known)
        if not transaction:
            raise PreventUpdate
        stamps = {r["name"]: _stamp(r) for r in rows}
        return transaction, stamps, _counted(library), _empty(library), not rows

    @app.callback(
        Output("runs-maps", "children"),
        Output("maps-known", "data"),
        Output("runs-none", "children", allow_duplicate=True),
        Input("tick", "n_intervals"),
        State("maps-known", "data"),
        prevent_initial_call=True,
    )
    def other_maps(ticks: int, known: list[str]) -> Any:
        if list(library.maps) == known:
            raise PreventUpdate
        return _maps(library), list(library.maps), _empty(library)

    app.clientside_callback(
        ClientsideFunction("spectra", "compared"),
        Output("compare-chosen", "href"),
        Output("compare-chosen", "children"),
        Input("runs", "selectedRows"),
        State("compare-chosen", "href"),
    )


def changes(
    rows: Sequence[dict[str, Any]], known: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Rows to add, update and remove, as AG Grid expects them; empty lists are left out."""
    names = {r["name"] for r in rows}
    found = {
        "add": [r for r in rows if r["name"] not in known],
        "update": [r for r in rows if r["name"] in known and known[r["name"]] != _stamp(r)],
        "remove": [{"name": name} for name in known if name not in names],
    }
    return {kind: entries for kind, entries in found.items() if entries}


def _stamp(row: dict[str, Any]) -> list[Any]:
    """Values that change when there is news of a run."""
    return [row["updated"], row["state"], row["snapshots"], row["train_step"]]


def _counted(library: Library) -> str:
    count = len(library.runs)
    return f"{count} {'store' if count == 1 else 'stores'} below {library.folder.name}"


def _empty(library: Library) -> Any:
    return None if library.runs or library.maps else components.nothing_here()


def _summaries(library: Library) -> list[Summary]:
    return [summary(run) for run in library.runs.values()]


def _maps(library: Library) -> list[Any]:
    if not library.maps:
        return []
    rows: list[dict[str, Any]] = []
    for name in library.maps:
        try:
            found = library.map(name)
        except InputError as error:
            rows.append({"name": name, "model": f"unreadable: {error}"})
            continue
        rows.append(
            {
                "name": name,
                "model": found.model.name,
                "method": found.method,
                "err": round(found.err, 4),
                "budget": round(found.budget, 4),
                "lrc": len(found.lrc),
                "nlrc": len(found.nlrc),
            }
        )
    titles = {"err": "ERR", "lrc": "LRC", "nlrc": "N-LRC"}
    columns = [
        {"field": f, "headerName": titles.get(f, f)}
        | (
            {"type": "numericColumn"}
            if f in ("err", "budget", "lrc", "nlrc")
            else {"minWidth": 140}
        )
        for f in MAPS
    ]
    lead = "The page Ranks shows a map next to any method."
    return [components.section("Rank maps", components.table(rows, columns), lead=lead)]


PAGE = Page("Runs", layout, register, needs=0)

"""Ranks: the rank of every matrix at any target, by one or two methods, and the map as a file."""

import urllib.parse
from html import escape
from typing import Any

import dash_mantine_components as dmc
import numpy as np
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from spectra.allocation.methods.registry import DEFAULT, METHODS, offered
from spectra.allocation.target import KINDS
from spectra.exports.formats import FORMATS
from spectra.figures.allocation import rank_map, rank_reduction
from spectra.figures.spectra import normalised_spectra
from spectra.matrices import block_labels, in_order
from spectra.storages.registry import DEFAULT_STORAGE, STORAGES
from spectra_dashboard import components, downloads, tables
from spectra_dashboard.access.library import Library
from spectra_dashboard.access.run import Run, from_here, spacing_of
from spectra_dashboard.pages.tails import step_options, step_value
from spectra_dashboard.registry import Page
from spectra_dashboard.view import View
from spectra_data.errors import InputError

SIDES = ("a", "b")
NUMBERS = {
    "err": "ERR",
    "budget": "parameters kept",
    "bytes": "stored",
    "lrc": "LRC / N-LRC",
    "threshold": "threshold",
    "error": "mean error",
}
EXPLAINED = {
    "err": "effective rank reduction: removed ranks over all ranks",
    "budget": "parameters stored, over all parameters of the blocks",
    "bytes": "bytes of the block parameters as stored",
    "lrc": "low-rank components (rank under half of the full rank) and the others",
    "threshold": "WeLore's cut on normalised singular values",
    "error": "predicted relative error of the stored matrices, mean over matrices",
}
OFFERED = ("json", "csv", "peft")


def key(view: View) -> list[str]:
    """The page is laid out anew for another run, snapshot, or pair of methods."""
    return [view.run, str(view.step), view.method, view.beside, view.target, view.storage]


def follows(view: View) -> bool:
    """Whether the page is laid out anew for a new snapshot."""
    return view.step is None


def layout(library: Library, view: View) -> html.Div:
    """Choices, the slider, numbers, maps, figures 4 and 6, and files."""
    run = library.run(view.run)
    steps = run.steps()
    heading = components.head(library, view, "ranks")
    settings = components.defaults(
        run=run.name, method=DEFAULT, beside="", storage=DEFAULT_STORAGE, target="err", step="last"
    )
    if not len(steps):
        return components.waiting(heading)
    choices = components.controls(
        components.method_select(view, "method", "Method", components.method_options(), w=150),
        components.method_select(
            view, "beside", "Next to it", _beside(library, view), w=200, searchable=True
        ),
        components.select("storage", "Storage", list(STORAGES), view.storage, w=120),
        components.select("step", "Snapshot", step_options(steps), step_value(view, steps), w=140)
        if len(steps) > 1
        else None,
        components.segments("target", "Slider over", _targets(view), view.target),
    )
    try:
        found = _tables(library, run, view)
    except InputError as error:
        return html.Div([*heading, settings, choices, components.card("No ranks", str(error))])
    targets = found["a"]["targets"]
    value = min(max(view.value, targets[0]), targets[-1])
    return html.Div(
        [
            *heading,
            settings,
            choices,
            html.Div(
                [
                    html.Span(KINDS[view.target].label, className="label"),
                    dmc.Slider(
                        id={"slider": "value"},
                        min=targets[0],
                        max=targets[-1],
                        step=spacing_of(view.method, view.target),
                        precision=4,
                        value=value,
                        updatemode="drag",
                        size="md",
                        label=None,
                        className="grow",
                        thumbLabel=KINDS[view.target].label,
                    ),
                    html.Output(f"{value:.3f}", id="value-says"),
                ],
                className="scrub",
            ),
            dcc.Store(id="ranks-tables", data=found),
            *(_side(side, found[side]["name"]) for side in SIDES if side in found),
            *_figures(run, view, found),
            components.numbers_below("ranks-numbers"),
        ]
    )


def register(app: Dash, library: Library) -> None:
    """Add the callbacks; the browser itself serves the slider and the table of matrices."""
    app.clientside_callback(
        ClientsideFunction("spectra", "ranks"),
        Output("value-says", "children"),
        Input({"slider": "value"}, "value"),
        Input("ranks-tables", "data"),
    )
    app.clientside_callback(
        ClientsideFunction("spectra", "rankRows"),
        Output("ranks-grid", "rowData"),
        Input({"slider": "value"}, "value"),
        Input("ranks-grid", "id"),
        State("ranks-tables", "data"),
    )

    @app.callback(Output("ranks-numbers", "children"), Input("ranks-numbers-fold", "value"))
    def numbers(opened: Any) -> Any:
        if not opened:
            raise PreventUpdate
        columns: list[Any] = [
            {"field": "matrix", "minWidth": 260, "pinned": "left"},
            *(
                {"field": f, "type": "numericColumn"}
                for f in ("rows", "cols", "full rank", "rank", "kept")
            ),
            {"field": "kind"},
            {"field": "stored as"},
            {"field": "error", "type": "numericColumn"},
        ]
        return components.table([], columns, id="ranks-grid", options={"domLayout": "normal"})


def _tables(library: Library, run: Run, view: View) -> dict[str, Any]:
    """All data that the slider draws from."""
    # name the snapshot shown: there may be a newer one when a file is requested
    step = run.step(view.step)
    named = step if len(run.steps()) > 1 else None
    path = run.path_of(view.method, view.target, view.storage, step)
    matrices = run.matrices()
    names = [m.name for m in matrices]
    of = f"run={_quoted(run.name)}" + (f"&step={named}" if named is not None else "")
    settings = f"&storage={view.storage}&target={view.target}"
    found: dict[str, Any] = {
        "step": step,
        "matrices": [[m.name, m.layer, m.role, m.rows, m.cols] for m in matrices],
        "places": _places(run),
        "target": view.target,
        "a": tables.of_path(path)
        | {
            "name": view.method,
            "storage": view.storage,
            "file": f"{downloads.ADDRESS}?{of}&method={view.method}{settings}",
            "command": _command(run, view, view.method, named),
        },
    }
    if view.beside.startswith("map:"):
        name = view.beside.removeprefix("map:")
        beside = library.map(name)
        if {m.name for m in beside.modules} != set(names):
            raise InputError(f"the map {name} has other matrices than {run.name}")
        found["b"] = tables.of_map(beside, names) | {
            "name": f"{beside.method} ({name})",
            "file": f"{downloads.ADDRESS}?map={_quoted(name)}",
            "command": "",
            "map": components.shell_quoted(from_here(library.maps[name].path, name)),
        }
    elif view.beside in offered() and view.target in METHODS[view.beside].targets:
        other = run.path_of(view.beside, view.target, view.storage, step)
        found["b"] = tables.of_path(other) | {
            "name": view.beside,
            "file": f"{downloads.ADDRESS}?{of}&method={view.beside}{settings}",
            "command": _command(run, view, view.beside, named),
        }
    return found


def _command(run: Run, view: View, method: str, step: int | None) -> str:
    """Command line that makes the same map, up to the target's value."""
    words = [f"spectra allocate {components.shell_quoted(run.address)} --method {method}"]
    if view.storage != DEFAULT_STORAGE:
        words.append(f"--storage {view.storage}")
    if step is not None:
        words.append(f"--step {step}")
    return " ".join([*words, f"--{view.target}"])


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def _places(run: Run) -> dict[str, Any]:
    """Row and column of each matrix in the map, and the traces of figure 6."""
    matrices = run.matrices()
    labels = [components.escaped(label) for label in run.labels().values()]
    layers = in_order(labels)
    roles = list(dict.fromkeys(m.role for m in matrices))
    return {
        "layers": layers,
        "roles": roles,
        "row": [layers.index(label) for label in labels],
        "column": [roles.index(m.role) for m in matrices],
        "traces": [[i for i, m in enumerate(matrices) if m.role == role] for role in roles],
    }


def _beside(library: Library, view: View) -> list[dict[str, Any]]:
    maps = [{"value": f"map:{name}", "label": f"map {name}"} for name in library.maps]
    return [{"value": "", "label": "nothing"}, *components.method_options(view.target), *maps]


def _targets(view: View) -> list[dict[str, Any]]:
    return [
        {
            "value": name,
            "label": kind.label,
            "disabled": name not in METHODS[view.method].targets,
        }
        for name, kind in KINDS.items()
    ]


def _side(side: str, name: str) -> html.Div:
    """The numbers of one method, and its map as a file."""
    numbers = [
        html.Div(
            [html.Dt(label, title=EXPLAINED[field]), html.Dd("–", id=f"{side}-{field}")],
            className="number",
        )
        for field, label in NUMBERS.items()
    ]
    offered = [
        html.A(
            _label(kind),
            id=f"{side}-get-{kind}",
            className="get",
            href="#",
            title=FORMATS[kind].summary,
        )
        for kind in OFFERED
    ]
    others = dmc.Menu(
        [
            dmc.MenuTarget(html.Button("More formats", type="button", className="get")),
            dmc.MenuDropdown(
                [
                    dmc.MenuItem(
                        html.A(
                            f"{kind}: {FORMATS[kind].summary}", id=f"{side}-get-{kind}", href="#"
                        )
                    )
                    for kind in FORMATS
                    if kind not in OFFERED
                ]
            ),
        ],
        keepMounted=True,
        shadow="sm",
    )
    return html.Div(
        [
            html.Div(
                [html.H2(name), html.Div([*offered, others], className="gets")], className="of-map"
            ),
            html.Dl(numbers, className="tiles"),
            html.Div(
                [
                    html.Pre(id=f"{side}-command"),
                    dcc.Clipboard(target_id=f"{side}-command", title="Copy this command"),
                ],
                className="command",
            ),
        ],
        className="side",
    )


def _figures(run: Run, view: View, found: dict[str, Any]) -> list[Any]:
    """Map, figure 4 and figure 6: side by side, or both maps above the two figures."""
    maps = [
        components.figure(f"map-{side}", drawn=_map_figure(found, side), wait=False)
        for side in SIDES
        if side in found
    ]
    lrcs_alone = METHODS[view.method].lrcs_alone
    whole = " An N-LRC stays whole, regardless of its rank." if lrcs_alone else ""
    below = [
        components.section(
            "How the ranks fall",
            components.figure("figure4", drawn=_figure_four(run, view, found), wait=False),
            lead="Singular values, scaled for each matrix to run from 1 to 0; WeLore removes those "
            f"under its threshold.{whole}",
        ),
        components.section(
            "Ranks removed, layer by layer",
            components.figure("figure6", drawn=_figure_six(run, found), wait=False),
        ),
    ]
    if len(maps) == 1:
        return [html.Div([*maps, html.Div(below, className="column")], className="pair")]
    return [html.Div(maps, className="pair"), html.Div(below, className="pair")]


def _label(kind: str) -> str:
    return {"json": "JSON", "csv": "CSV", "peft": "PEFT config"}.get(kind, kind)


def _map_figure(found: dict[str, Any], side: str) -> Any:
    """The map without ranks; the browser fills them in."""
    places = found["places"]
    shape = (len(places["layers"]), len(places["roles"]))
    labels = [[""] * shape[1] for _ in range(shape[0])]
    return rank_map(
        np.full(shape, np.nan),
        labels,
        places["layers"],
        [escape(str(role), quote=False) for role in places["roles"]],
        title=escape(found[side]["name"], quote=False),
    )


def _figure_four(run: Run, view: View, found: dict[str, Any]) -> Any:
    candidates = run.candidates(view.step)
    roles = np.array([c.matrix.role for c in candidates.each], object)
    layers = [components.escaped(label) for label in block_labels(candidates.names)]
    width = max(c.full_rank for c in candidates.each)
    values = np.full((len(roles), width), np.nan)
    for i, c in enumerate(candidates.each):
        values[i, : c.full_rank] = c.values
    members = {role: np.flatnonzero(roles == role) for role in dict.fromkeys(roles.tolist())}
    shown = {escape(str(role), quote=False): of for role, of in members.items()}
    cut = found["a"]["threshold"][0]
    return normalised_spectra(
        {role: values[of] for role, of in shown.items()},
        {role: [layers[i] for i in of] for role, of in shown.items()},
        threshold=0.0 if cut is None else cut,
        title="",
    )


def _figure_six(run: Run, found: dict[str, Any]) -> Any:
    places = found["places"]
    layers = [components.escaped(label) for label in run.labels().values()]
    members = {
        escape(str(role), quote=False): np.array(of)
        for role, of in zip(places["roles"], places["traces"], strict=True)
    }
    return rank_reduction(
        {role: np.zeros(len(of)) for role, of in members.items()},
        {role: [layers[i] for i in of] for role, of in members.items()},
        lrc_factor=found["a"]["lrcFactor"],
        title="",
        subtitle=found["a"]["name"],
    )


PAGE = Page("Ranks", layout, register, key=key, follows=follows, made_for="scan")

"""Dynamics: how gradients turn and spectra move over training, matrix by matrix."""

from html import escape
from typing import Any

import dash_mantine_components as dmc
import numpy as np
from dash import (
    ALL,
    MATCH,
    ClientsideFunction,
    Dash,
    Input,
    Output,
    State,
    dcc,
    html,
    no_update,
)
from dash.exceptions import PreventUpdate

from dashboard import panels, parts
from dashboard.access.library import Library
from dashboard.access.run import Run
from dashboard.panels import HEIGHTS, Held
from dashboard.view import View
from data.errors import InputError
from spectra.figures.reduction import block_size
from spectra.figures.spectra import spectra_lines
from spectra.figures.theme import SECOND, empty
from spectra.figures.training import loss_curve

MOST_MATRICES = 8
"""At a time, so that a page stays within its cells."""
LOSS_POINTS = 2_000
TITLES = {
    "cosine": (
        "Gradients that turn, or settle",
        "Cosine similarity between the gradients of all pairs of snapshots on the probe batch. "
        "A red block is a gradient that has stopped turning; a bare diagonal keeps turning.",
    ),
    "gradient": ("Spectra of gradients", "Leading singular values, a snapshot a row."),
    "overlap": (
        "Overlap of leading gradient subspaces",
        "Colours start at what unrelated subspaces have by chance.",
    ),
    "weight": (
        "Spectra of weights",
        "Brightness that moves to the left edge is a weight becoming low-rank.",
    ),
    "update": ("Spectra of updates", "What the optimizer's last step added."),
}


def key(view: View) -> list[str]:
    """The page is laid out anew for another run."""
    return [view.run]


def layout(library: Library, view: View) -> html.Div:
    """Choices, the scrubber, and a place for every panel."""
    run = library.run(view.run or next(iter(library.runs), ""))
    steps = run.steps()
    heading = parts.head(
        library, view, "Dynamics", "How gradients turn and spectra move while a model is trained."
    )
    if not len(steps):
        return html.Div([*heading, parts.defaults(), waiting()])
    both = run.has("sketches") and run.has("gradients")
    chosen = list(chosen_matrices(run, view))
    options = [
        {"value": m.name, "label": f"{m.layer} · {m.role}"}
        if _alone(run, m)
        else {"value": m.name, "label": m.name}
        for m in run.matrices()
    ]
    row = run.row(view.step if view.step in steps else None)
    return html.Div(
        [
            *heading,
            parts.defaults(
                run=run.name,
                matrix=list(chosen_matrices(run, View())),
                scale="linear",
                norm="raw",
                cosine="sketch",
            ),
            parts.controls(
                dmc.MultiSelect(
                    id={"control": "matrix"},
                    label="Matrices",
                    data=options,
                    value=chosen,
                    searchable=True,
                    size="xs",
                    maxValues=MOST_MATRICES,
                    className="grow",
                    clearable=True,
                    hidePickedOptions=True,
                    limit=300,
                ),
                parts.segments(
                    "cosine",
                    "Cosine",
                    [
                        {"value": "sketch", "label": "approximate"},
                        {"value": "exact", "label": "exact"},
                    ],
                    view.cosine,
                )
                if both
                else None,
                parts.segments("scale", "Colours", ["linear", "log"], view.scale),
                parts.segments(
                    "norm",
                    "Values",
                    [
                        {"value": "raw", "label": "as recorded"},
                        {"value": "first", "label": "over the largest"},
                    ],
                    view.norm,
                ),
            ),
            html.Div(
                [
                    html.Span("Step", className="label", id="scrub-label"),
                    dmc.Slider(
                        id={"slider": "step"},
                        min=0,
                        max=max(len(steps) - 1, 1),
                        value=row,
                        step=1,
                        updatemode="drag",
                        size="sm",
                        label=None,
                        className="grow",
                        thumbLabel="Step of the spectra below",
                        disabled=len(steps) < 2,
                    ),
                    html.Output(f"{steps[row]:,}", id="scrub-says"),
                ],
                className="scrub",
            ),
            dcc.Store(id="steps", data=steps.tolist()),
            dcc.Store(id="panel-matrices"),
            html.Div(id="panels"),
            *(dcc.Store(id=f"loss-{use}") for use in ("held", "new")),
            parts.section("Loss", parts.figure("loss", height=280)) if run.has("train") else None,
            parts.numbers_below("dynamics-numbers"),
        ]
    )


def waiting() -> html.Div:
    """In place of a run without a snapshot."""
    return parts.card(
        "No snapshot yet", "The first one is taken at the start of training; it will appear here."
    )


def chosen_matrices(run: Run, view: View) -> tuple[str, ...]:
    """The matrices of the address; without any as the paper has it, else the first four."""
    matrices = run.matrices()
    names = {m.name for m in matrices}
    if asked := tuple(name for name in view.matrix if name in names)[:MOST_MATRICES]:
        return asked
    layers = sorted({m.layer for m in matrices})
    if not layers:
        return ()
    middle = layers[len(layers) // 2]
    wanted = [(layers[0], "q"), (layers[0], "k"), (middle, "down"), (middle, "up")]
    found = {(m.layer, m.role): m.name for m in reversed(matrices)}
    usual = tuple(found[place] for place in wanted if place in found)
    return usual or tuple(m.name for m in matrices[:4])


def register(app: Dash, library: Library) -> None:
    """Panels are drawn when they come into sight, and grow by the rows that are new."""

    def asked(pathname: str, search: str) -> tuple[Run, View]:
        view = View.from_address(pathname, search)
        return library.run(view.run or next(iter(library.runs), "")), view

    @app.callback(
        Output("panels", "children"),
        Output("panel-matrices", "data"),
        Input("address", "search"),
        Input("shown", "data"),
        State("address", "pathname"),
        State("panel-matrices", "data"),
    )
    def choose(search: str, shown: Any, pathname: str, drawn: Any) -> Any:
        run, view = asked(pathname, search)
        wanted = [run.name, *chosen_matrices(run, view)]
        if wanted == drawn:
            raise PreventUpdate
        return _sections(run, wanted[1:]), wanted

    @app.callback(
        Output({"type": "panel", "key": MATCH}, "figure"),
        Output({"type": "held", "key": MATCH}, "data"),
        Input({"type": "seen", "key": MATCH}, "data"),
        Input("address", "search"),
        State("address", "pathname"),
        State({"type": "held", "key": MATCH}, "data"),
        State({"type": "held", "key": MATCH}, "id"),
        prevent_initial_call=True,
    )
    def draw(seen: bool, search: str, pathname: str, held: Any, identity: Any) -> Any:
        if not seen:
            raise PreventUpdate
        run, view = asked(pathname, search)
        try:
            if held and panels.up_to_date(run, view, identity["key"], _held(held)):
                raise PreventUpdate
            figure, now = panels.whole(run, view, identity["key"])
        except InputError as error:
            return empty(escape(str(error), quote=False)), None
        return figure, vars(now)

    @app.callback(
        Output({"type": "rows", "key": ALL}, "data"),
        Input("news", "data"),
        State("address", "pathname"),
        State("address", "search"),
        State({"type": "held", "key": ALL}, "data"),
        State({"type": "held", "key": ALL}, "id"),
        prevent_initial_call=True,
    )
    def grow(news: Any, pathname: str, search: str, held: list[Any], ids: list[Any]) -> Any:
        if not any(held):
            raise PreventUpdate
        run, view = asked(pathname, search)
        grown: list[Any] = []
        for one, identity in zip(held, ids, strict=True):
            if not one or one["count"] == len(run.steps()):
                grown.append(no_update)
                continue
            grown.append(panels.rows(run, view, identity["key"], _held(one)).to_dict())
        if all(rows is no_update for rows in grown):
            raise PreventUpdate
        return grown

    app.clientside_callback(
        ClientsideFunction("spectra", "grow"),
        Output({"type": "panel", "key": MATCH}, "figure", allow_duplicate=True),
        Output({"type": "held", "key": MATCH}, "data", allow_duplicate=True),
        Input({"type": "rows", "key": MATCH}, "data"),
        State({"type": "panel", "key": MATCH}, "figure"),
        State({"type": "held", "key": MATCH}, "data"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("spectra", "scrub"),
        Output("scrub-says", "children"),
        Output({"slider": "step"}, "max"),
        Output({"slider": "step"}, "value"),
        Output("steps", "data"),
        Input({"slider": "step"}, "value"),
        Input("news", "data"),
        Input("address", "search"),
        State("steps", "data"),
        State({"slider": "step"}, "max"),
    )

    @app.callback(
        Output({"type": "lines", "matrix": ALL}, "figure"),
        Input({"slider": "step"}, "value"),
        Input("panel-matrices", "data"),
        State("steps", "data"),
        State("address", "pathname"),
        State("address", "search"),
        State({"type": "lines", "matrix": ALL}, "id"),
    )
    def lines(
        place: int, _: Any, steps: list[int], pathname: str, search: str, ids: list[Any]
    ) -> Any:
        if not ids or not steps:
            raise PreventUpdate
        run, _view = asked(pathname, search)
        step = steps[min(place or 0, len(steps) - 1)]
        return [_lines(run, identity["matrix"], step) for identity in ids]

    @app.callback(
        Output("loss", "figure"),
        Output("loss-new", "data"),
        Output("loss-held", "data"),
        Input("news", "data"),
        State("address", "pathname"),
        State("address", "search"),
        State("loss-held", "data"),
    )
    def loss(news: Any, pathname: str, search: str, held: Any) -> Any:
        run, _view = asked(pathname, search)
        train = run.train("loss", "validation_loss")
        steps = train["train_step"]
        last = int(steps[-1]) if len(steps) else None
        if held is None or last is None or held > last:
            return _loss(train), no_update, last
        if last == held:
            raise PreventUpdate
        return no_update, _new_losses(train, held), last

    app.clientside_callback(
        ClientsideFunction("spectra", "extend"),
        Output("loss", "figure", allow_duplicate=True),
        Input("loss-new", "data"),
        State("loss", "figure"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output("dynamics-numbers", "children"),
        Input("dynamics-numbers-fold", "value"),
        Input("panel-matrices", "data"),
        State("address", "pathname"),
        State("address", "search"),
    )
    def numbers(opened: Any, matrices: Any, pathname: str, search: str) -> Any:
        if not opened or not matrices:
            raise PreventUpdate
        run, view = asked(pathname, search)
        return _numbers(run, view, matrices[1:])


def _sections(run: Run, matrices: list[str]) -> list[Any]:
    found: list[Any] = []
    if not matrices:
        return [parts.card("No matrix is chosen", "Choose some above.")]
    for kind in panels.kinds(run):
        title, lead = TITLES[kind]
        found.append(
            parts.section(
                title,
                html.Div([_panel(kind, name) for name in matrices], className="panels"),
                lead=lead,
            )
        )
    of_step = html.Div(
        [parts.figure({"type": "lines", "matrix": name}, height=290) for name in matrices],
        className="panels",
    )
    found.append(
        parts.section(
            "Spectra at the chosen step",
            of_step,
            lead="All singular values at the step that is set above.",
        )
    )
    return found


def _panel(kind: str, matrix: str) -> html.Div:
    name = panels.key(kind, matrix)
    return html.Div(
        [
            parts.figure({"type": "panel", "key": name}, height=HEIGHTS[kind]),
            *(dcc.Store(id={"type": use, "key": name}) for use in ("seen", "held", "rows")),
        ],
        className="panel",
        **parts.attributes(data_key=name, data_kind=kind),
    )


def _held(fields: dict[str, Any]) -> Held:
    return Held(**fields | {"how": tuple(fields["how"])})


def _alone(run: Run, matrix: Any) -> bool:
    places = [(m.layer, m.role) for m in run.matrices()]
    return places.count((matrix.layer, matrix.role)) == 1


def _lines(run: Run, matrix: str, step: int) -> Any:
    try:
        spectra = {kind: run.spectrum(kind, matrix, step) for kind in run.kinds()}
    except InputError as error:
        return empty(escape(str(error), quote=False))
    spectra = {kind: values for kind, values in spectra.items() if len(values)}
    found = next((m for m in run.matrices() if m.name == matrix), None)
    title = f"layer {found.layer} · {escape(found.role, quote=False)}" if found else ""
    return spectra_lines(spectra, title=title, subtitle=f"step {step:,}")


def _loss(train: dict[str, Any]) -> Any:
    steps, losses, validation = train["train_step"], train["loss"], train["validation_loss"]
    if not np.isfinite(losses).any():
        return empty("No training loss was logged.", height=280)
    blocks = np.arange(0, len(steps), block_size(len(steps), LOSS_POINTS))
    parts_ = np.split(losses, blocks[1:])
    peaks = blocks + [int(np.argmax(np.nan_to_num(part, nan=-np.inf))) for part in parts_]
    kept = np.unique(np.concatenate([blocks, peaks, np.flatnonzero(np.isfinite(validation))]))
    figure = loss_curve(steps[kept], losses[kept], validation[kept], title="")
    if len(figure.data) == 1:  # a place for what is to come
        figure.add_scatter(
            x=[],
            y=[],
            name="validation",
            mode="lines+markers",
            line={"color": SECOND, "width": 1.6},
        )
    return figure


def _new_losses(train: dict[str, Any], held: int) -> Any:
    """The points after a step, by trace."""
    new = train["train_step"] > held
    steps, losses, validation = (train[n][new] for n in ("train_step", "loss", "validation_loss"))
    there = np.isfinite(validation)
    x, y = [steps.tolist(), steps[there].tolist()], [_listed(losses), _listed(validation[there])]
    return {"x": x, "y": y}


def _listed(values: Any) -> list[float | None]:
    return [round(float(v), 5) if np.isfinite(v) else None for v in values]


def _numbers(run: Run, view: View, matrices: list[str]) -> Any:
    steps = run.steps()
    rows: list[dict[str, Any]] = [
        {"matrix": name, "step": step} for name in matrices for step in steps.tolist()
    ]
    columns: list[Any] = [
        {"field": "matrix", "minWidth": 220, "flex": 2},
        {"field": "step", "type": "numericColumn"},
    ]
    shown = panels.kinds(run)
    for kind in shown:
        if kind in panels.SPECTRA:
            field, found = (
                f"σ₁ of {kind}",
                [run.spectrum_rows(kind, name, 0, 1)[:, 0] for name in matrices],
            )
        else:
            field = f"{kind} with the snapshot before"
            what = "overlap" if kind == "overlap" else panels.cosine_method(run, view)
            found = [
                np.append(np.nan, np.diagonal(run.pairs(what, name).values, 1)) for name in matrices
            ]
        columns.append({"field": field, "type": "numericColumn"})
        for row, value in zip(rows, np.concatenate(found), strict=True):
            row[field] = float(f"{value:.4g}") if np.isfinite(value) else None
    return parts.table(rows, columns)

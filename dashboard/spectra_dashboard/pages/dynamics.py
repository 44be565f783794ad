"""Dynamics: how gradients turn and spectra move over training, matrix by matrix."""

from typing import Any

import dash_mantine_components as dmc
import numpy as np
from dash import ALL, MATCH, ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from spectra.figures.reduction import block_size
from spectra.figures.theme import SECOND, empty
from spectra.figures.training import loss_curve
from spectra.quantities import QUANTITIES
from spectra_dashboard import components, panels
from spectra_dashboard.access.library import Library
from spectra_dashboard.access.run import Run
from spectra_dashboard.address import or_reason, view_on
from spectra_dashboard.panels import HEIGHTS, MOST_MATRICES, Held, chosen_matrices
from spectra_dashboard.registry import Page
from spectra_dashboard.view import View

LOSS_POINTS = 2_000
TITLES = {
    "cosine": (
        "Gradients that turn, or settle",
        "Cosine similarity between the gradients of all pairs of snapshots on the probe batch. "
        "A red block is a gradient that has stopped turning; a bare diagonal keeps turning.",
    ),
    "overlap": (
        "Overlap of leading gradient subspaces",
        "Colours start at the overlap that unrelated subspaces have by chance.",
    ),
    **{
        name: (f"Spectra of {quantity.noun}", quantity.about)
        for name, quantity in QUANTITIES.items()
    },
    "lines": (
        "Spectra at the chosen step",
        "All singular values at the step set above.",
    ),
}


def key(view: View) -> list[str]:
    """The page is laid out anew for another run."""
    return [view.run]


def layout(library: Library, view: View) -> html.Div:
    """Choices, the scrubber, and room for every panel."""
    run = library.run(view.run)
    steps = run.steps()
    heading = components.head(library, view, "dynamics")
    if not len(steps):
        return components.waiting(heading)
    both = run.has("sketches") and run.has("gradients")
    row = run.row(view.step)
    return html.Div(
        [
            *heading,
            components.defaults(
                run=run.name,
                matrix=list(chosen_matrices(run, View())),
                scale="linear",
                norm="raw",
                cosine="sketch",
            ),
            components.controls(
                dmc.MultiSelect(
                    id={"control": "matrix"},
                    label="Matrices",
                    data=_options(run),
                    value=list(chosen_matrices(run, view)),
                    searchable=True,
                    size="xs",
                    maxValues=MOST_MATRICES,
                    className="grow",
                    clearable=True,
                    hidePickedOptions=True,
                    limit=300,
                ),
                components.segments(
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
                components.segments("scale", "Colours", ["linear", "log"], view.scale),
                components.segments(
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
                    html.Span("Step", className="label"),
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
            components.section("Loss", components.figure("loss", height=280))
            if run.has("train")
            else None,
            components.numbers_below("dynamics-numbers"),
        ]
    )


def register(app: Dash, library: Library) -> None:
    """Add the callbacks: panels are drawn when they come into view, and grow by new rows."""

    def shown(pathname: str, search: str) -> tuple[Run, View]:
        view = view_on("dynamics", library, pathname, search)
        return library.run(view.run), view

    @app.callback(
        Output("panels", "children"),
        Output("panel-matrices", "data"),
        Input("address", "search"),
        Input("shown", "data"),
        State("address", "pathname"),
        State("panel-matrices", "data"),
    )
    def choose(search: str, page: Any, pathname: str, drawn: Any) -> Any:
        run, view = shown(pathname, search)
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
    @or_reason(None)
    def draw(seen: bool, search: str, pathname: str, held: Any, identity: Any) -> Any:
        if not seen:
            raise PreventUpdate
        run, view = shown(pathname, search)
        if held and panels.up_to_date(run, view, identity["key"], _held(held)):
            raise PreventUpdate
        figure, now = panels.whole(run, view, identity["key"])
        return figure, vars(now)

    @app.callback(
        Output({"type": "rows", "key": ALL}, "data"),
        Input("snapshots", "data"),
        State("address", "pathname"),
        State("address", "search"),
        State({"type": "seen", "key": ALL}, "data"),
        State({"type": "held", "key": ALL}, "data"),
        State({"type": "held", "key": ALL}, "id"),
        prevent_initial_call=True,
    )
    def grow(
        snapshots: Any,
        pathname: str,
        search: str,
        seen: list[Any],
        held: list[Any],
        ids: list[Any],
    ) -> Any:
        """New rows of the panels in view; the others are drawn when they come back."""
        if not any(held):
            raise PreventUpdate
        run, view = shown(pathname, search)
        grown: list[Any] = []
        for visible, one, identity in zip(seen, held, ids, strict=True):
            name = identity["key"]
            if visible and one and not panels.up_to_date(run, view, name, _held(one)):
                grown.append(panels.rows(run, view, name, _held(one)).to_dict())
            else:
                grown.append(no_update)
        if all(rows is no_update for rows in grown):
            raise PreventUpdate
        return grown

    app.clientside_callback(
        ClientsideFunction("spectra", "grow"),
        Output({"type": "panel", "key": MATCH}, "figure", allow_duplicate=True),
        Output({"type": "held", "key": MATCH}, "data", allow_duplicate=True),
        Input({"type": "rows", "key": MATCH}, "data"),
        State({"type": "panel", "key": MATCH}, "figure"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("spectra", "scrub"),
        Output("scrub-says", "children"),
        Output({"slider": "step"}, "max"),
        Output({"slider": "step"}, "value"),
        Output("steps", "data"),
        Input({"slider": "step"}, "value"),
        Input("snapshots", "data"),
        Input("address", "search"),
        Input({"type": "held", "key": ALL}, "data"),
        State("steps", "data"),
        State({"slider": "step"}, "max"),
    )

    @app.callback(
        Output("loss", "figure"),
        Output("loss-new", "data"),
        Output("loss-held", "data"),
        Input("news", "data"),
        State("address", "pathname"),
        State("address", "search"),
        State("loss-held", "data"),
    )
    @or_reason(no_update, None)
    def loss(news: Any, pathname: str, search: str, held: Any) -> Any:
        run, _ = shown(pathname, search)
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
        run, view = shown(pathname, search)
        return _numbers(run, view, matrices[1:])


def _options(run: Run) -> list[dict[str, str]]:
    """Matrices by layer and role, or by name if several share both."""
    labels = run.labels()
    pairs = [(labels[m.name], m.role) for m in run.matrices()]
    alone = {pair for pair in pairs if pairs.count(pair) == 1}
    return [
        {"value": m.name, "label": f"{pair[0]} · {m.role}" if pair in alone else m.name}
        for m, pair in zip(run.matrices(), pairs, strict=True)
    ]


def _sections(run: Run, matrices: list[str]) -> list[Any]:
    if not matrices:
        return [components.card("No matrix is chosen", "Choose some above.")]
    return [
        components.section(
            TITLES[kind][0],
            html.Div([_panel(kind, name) for name in matrices], className="panels"),
            lead=TITLES[kind][1],
        )
        for kind in panels.kinds(run)
    ]


def _panel(kind: str, matrix: str) -> html.Div:
    name = panels.key(kind, matrix)
    return html.Div(
        [
            components.figure({"type": "panel", "key": name}, height=HEIGHTS[kind]),
            *(dcc.Store(id={"type": use, "key": name}) for use in ("seen", "held", "rows")),
        ],
        className="panel",
        **components.attributes(data_key=name, data_kind=kind),
    )


def _held(fields: dict[str, Any]) -> Held:
    return Held(**fields | {"settings": tuple(fields["settings"])})


def _loss(train: dict[str, Any]) -> Any:
    steps, losses, validation = train["train_step"], train["loss"], train["validation_loss"]
    if not np.isfinite(losses).any():
        return empty("No training loss was logged.", height=280)
    blocks = np.arange(0, len(steps), block_size(len(steps), LOSS_POINTS))
    split = np.split(losses, blocks[1:])
    peaks = blocks + [int(np.argmax(np.nan_to_num(part, nan=-np.inf))) for part in split]
    kept = np.unique(np.concatenate([blocks, peaks, np.flatnonzero(np.isfinite(validation))]))
    figure = loss_curve(steps[kept], losses[kept], validation[kept], title="")
    if len(figure.data) == 1:  # for values to come
        figure.add_scatter(
            x=[], y=[], name="validation", mode="lines+markers", line={"color": SECOND}
        )
    return figure


def _new_losses(train: dict[str, Any], held: int) -> Any:
    """Points after a step, by trace."""
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
    for kind in panels.kinds(run):
        if kind == panels.LINES:
            continue
        if kind in QUANTITIES:
            field = f"σ₁ of {kind}"
            every = slice(0, len(steps))
            found = [run.spectrum_rows(kind, name, every, 1)[:, 0] for name in matrices]
        else:
            field = f"{kind} with the snapshot before"
            what = "overlap" if kind == "overlap" else panels.cosine_method(run, view)
            pairs = (run.pairs(what, name).values[: len(steps), : len(steps)] for name in matrices)
            found = [np.append(np.nan, np.diagonal(values, 1)) for values in pairs]
        columns.append({"field": field, "type": "numericColumn"})
        for row, value in zip(rows, np.concatenate(found), strict=True):
            row[field] = float(f"{value:.4g}") if np.isfinite(value) else None
    return components.table(rows, columns)


PAGE = Page("Dynamics", layout, register, key=key)

"""Tails: one measure of every spectrum, over training and over the model, and of one matrix."""

from collections.abc import Collection
from html import escape
from typing import Any

import numpy as np
import xarray as xr
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from spectra.figures.measures import layer_role_grid, layer_role_heatmap, map_height, measure_lines
from spectra.figures.reduction import shortened
from spectra.figures.spectra import tail_fit
from spectra.matrices import block_labels
from spectra.metrics.goodness import ENOUGH, Verdict
from spectra.metrics.spectrum import squared
from spectra_dashboard import components
from spectra_dashboard.access.library import Library
from spectra_dashboard.access.run import Run
from spectra_dashboard.address import or_reason, view_on
from spectra_dashboard.registry import Page
from spectra_dashboard.view import View

MEASURES = (
    "alpha",
    "hill_alpha",
    "tail_size",
    "ks_distance",
    "mp_spikes",
    "mp_soft_rank",
    "optimal_rank",
    "stable_rank",
    "effective_rank",
    "participation_ratio",
    "energy_rank_90",
    "energy_rank_99",
    "numerical_rank",
    "spectral_entropy",
    "rank_one_residual",
    "spectral_norm",
    "frobenius_norm",
    "nuclear_norm",
)
MEASURED = 25
"""Snapshots of the lines over training: the fits of one take a second on a large model."""


def key(view: View) -> list[str]:
    """The page is laid out anew for another run."""
    return [view.run]


def layout(library: Library, view: View) -> html.Div:
    """Choices, the map, the matrix that it opens, and the lines."""
    run = library.run(view.run)
    steps = run.steps()
    squares = "Tails are those of eigenvalues, the squared singular values."
    heading = components.head(library, view, "tails", squares)
    if not len(steps):
        return components.waiting(heading)
    first = run.matrices()[0].name
    kinds = run.kinds()
    series = len(steps) > 1
    return html.Div(
        [
            *heading,
            components.defaults(
                run=run.name, kind=kinds[0], measure="stable_rank", matrix=first, step="last"
            ),
            components.controls(
                components.segments("kind", "Spectra of", kinds, _kind(run, view)),
                components.select(
                    "measure", "Measure", measures(), _measure(view), searchable=True, w=200
                ),
                components.select(
                    "step", "Snapshot", step_options(steps), step_value(view, steps), w=140
                )
                if series
                else None,
                components.select(
                    "matrix",
                    "Matrix",
                    [{"value": m.name, "label": m.name} for m in run.matrices()],
                    _matrix(run, view),
                    searchable=True,
                    className="grow",
                    limit=300,
                ),
            ),
            html.Div(
                [
                    components.figure("tails-map", height=_height(run)),
                    components.figure("tails-matrix", height=330),
                ],
                className="pair",
            ),
            components.section(
                "Over training",
                components.figure("tails-lines", height=330),
                lead=f"At up to {MEASURED} snapshots, evenly spaced.",
            )
            if series
            else None,
            dcc.Store(id="tails-places"),
            components.numbers_below("tails-numbers"),
        ]
    )


def register(app: Dash, library: Library) -> None:
    """Add the figures of the view's measure; a click on the map opens a matrix."""

    def shown(pathname: str, search: str) -> tuple[Run, View]:
        view = view_on("tails", library, pathname, search)
        return library.run(view.run), view

    given = (
        Input("address", "search"),
        Input("snapshots", "data"),
        State("address", "pathname"),
    )

    @app.callback(Output("tails-map", "figure"), Output("tails-places", "data"), *given)
    @or_reason({})
    def heatmap(search: str, snapshots: Any, pathname: str) -> Any:
        run, view = shown(pathname, search)
        values = _values(run, view, run.step(view.step))
        names = values["matrix"].to_numpy().tolist()
        layer_of = [components.escaped(label) for label in block_labels(names)]
        role_of = values["role"].to_numpy().tolist()
        grid, layers, roles = layer_role_grid(values.to_numpy(), layer_of, role_of)
        places = {
            f"{layer}|{escape(str(role), quote=False)}": name
            for layer, role, name in reversed(list(zip(layer_of, role_of, names, strict=True)))
        }
        subtitle = f"{_kind(run, view)} at step {run.step(view.step):,}; choose a cell to open it"
        drawn = layer_role_heatmap(
            grid,
            layers,
            [escape(str(role), quote=False) for role in roles],
            title=_label(view),
            subtitle=subtitle,
            numbers=_few(roles),
        )
        return drawn, places

    @app.callback(Output("tails-matrix", "figure"), *given)
    @or_reason()
    def matrix(search: str, snapshots: Any, pathname: str) -> Any:
        return _tail(*shown(pathname, search))

    @app.callback(Output("tails-lines", "figure"), *given)
    @or_reason()
    def lines(search: str, snapshots: Any, pathname: str) -> Any:
        run, view = shown(pathname, search)
        steps = run.steps()
        few = np.unique(np.linspace(0, len(steps) - 1, MEASURED).round().astype(int))
        found = [_values(run, view, int(step)) for step in steps[few]]
        roles = found[0]["role"].to_numpy().astype(object)
        values = np.stack([one.to_numpy() for one in found])
        by_role = {
            escape(str(role), quote=False): values[:, roles == role]
            for role in dict.fromkeys(roles.tolist())
        }
        return measure_lines(by_role, steps[few], title=_label(view))

    @app.callback(
        Output("tails-numbers", "children"),
        Input("tails-numbers-fold", "value"),
        Input("address", "search"),
        State("address", "pathname"),
    )
    def numbers(opened: Any, search: str, pathname: str) -> Any:
        if not opened:
            raise PreventUpdate
        return _numbers(*shown(pathname, search))

    app.clientside_callback(
        ClientsideFunction("spectra", "open"),
        Output("tails-map", "clickAnnotationData"),
        Input("tails-map", "clickData"),
        State("tails-places", "data"),
        prevent_initial_call=True,
    )


def _height(run: Run) -> int:
    matrices = run.matrices()
    return map_height(len(set(run.labels().values())), numbers=_few({m.role for m in matrices}))


def _few(roles: Collection[str]) -> bool:
    """Whether cells have room for numbers."""
    return len(roles) <= 12


def measures() -> list[dict[str, str]]:
    """Measures to choose from."""
    return [{"value": name, "label": name.replace("_", " ")} for name in MEASURES]


def step_options(steps: Any) -> list[dict[str, str]]:
    """Snapshots to choose from; ``last`` stays the last as more are taken."""
    return [
        {"value": "last", "label": f"last ({steps[-1]:,})"},
        *({"value": str(step), "label": f"{step:,}"} for step in steps[::-1].tolist()),
    ]


def step_value(view: View, steps: Any, name: str = "step") -> str:
    """The option of `step_options` that a view has."""
    step = getattr(view, name)
    return str(step) if step is not None and step in steps else "last"


def _kind(run: Run, view: View) -> str:
    kinds = run.kinds()
    return view.kind if view.kind in kinds else kinds[0]


def _measure(view: View) -> str:
    return view.measure if view.measure in MEASURES else "stable_rank"


def _label(view: View) -> str:
    return _measure(view).replace("_", " ").capitalize()


def _matrix(run: Run, view: View) -> str:
    names = [m.name for m in run.matrices()]
    return next((name for name in view.matrix if name in names), names[0])


def _values(run: Run, view: View, step: int) -> xr.DataArray:
    return run.measures(step)[_measure(view)].sel(kind=_kind(run, view))


def _tail(run: Run, view: View) -> Any:
    name, kind, step = _matrix(run, view), _kind(run, view), run.step(view.step)
    fit = run.measures(step).sel(matrix=name, kind=kind)
    values = shortened(squared(run.spectrum(kind, name, step)))
    return tail_fit(
        values,
        title=escape(name, quote=False),
        alpha=float(fit["alpha"]),
        x_min=float(fit["x_min"]),
        tail_size=float(fit["tail_size"]),
        edge=float(fit["mp_edge"]),
        threshold=float(fit["spike_threshold"]),
        verdict=Verdict.TOO_FEW.value if fit["tail_size"] < ENOUGH else "",
    )


def _numbers(run: Run, view: View) -> Any:
    found = run.measures(run.step(view.step)).sel(kind=_kind(run, view))
    rows = []
    columns = [name for name in MEASURES if name in found]
    for index, name in enumerate(found["matrix"].to_numpy().tolist()):
        row: dict[str, Any] = {"matrix": name}
        for column in columns:
            value = float(found[column][index])
            row[column.replace("_", " ")] = float(f"{value:.4g}") if np.isfinite(value) else None
        rows.append(row)
    definitions = [{"field": "matrix", "minWidth": 260, "pinned": "left"}]
    definitions += [
        {"field": name.replace("_", " "), "type": "numericColumn", "minWidth": 120}
        for name in columns
    ]
    return components.table(rows, definitions)


PAGE = Page("Tails", layout, register, key=key)

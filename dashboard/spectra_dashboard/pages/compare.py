"""Compare: two runs, or two snapshots of one, and their differences."""

from html import escape
from typing import Any

import numpy as np
from dash import Dash, Input, Output, State, html
from dash.exceptions import PreventUpdate

from spectra.figures.measures import difference_heatmap, layer_role_grid, map_height
from spectra.figures.reduction import block_size
from spectra.figures.spectra import spectra_lines
from spectra.figures.theme import empty
from spectra.figures.training import loss_curves
from spectra.matrices import block_labels
from spectra_dashboard import components
from spectra_dashboard.access.library import Library
from spectra_dashboard.access.run import Run
from spectra_dashboard.address import or_reason, view_on
from spectra_dashboard.pages.tails import MEASURES, measures
from spectra_dashboard.registry import Page
from spectra_dashboard.view import View
from spectra_data.errors import InputError

POINTS = 2_000


def key(view: View) -> list[str]:
    """The page is laid out anew for another pair of runs."""
    return [view.run, view.other]


def layout(library: Library, view: View) -> html.Div:
    """Two sides, a measure, and the differences."""
    first, second = _sides(library, view)
    heading = html.Div(components.titles("compare"), className="head")
    usual = first.matrices()[0].name if first.matrices() else ""
    usual_steps = [str(step) for step in _steps(first, second, View())]
    chosen = [str(step) for step in _steps(first, second, view)]
    return html.Div(
        [
            heading,
            components.defaults(
                run=first.name,
                other=second.name,
                step=usual_steps[0],
                other_step=usual_steps[1],
                kind="weight",
                measure="stable_rank",
                matrix=usual,
            ),
            components.controls(
                components.run_select(library, first.name, "run", "First"),
                components.select("step", "at step", _options(first), chosen[0], w=130),
                components.run_select(library, second.name, "other", "Second"),
                components.select("other_step", "at step", _options(second), chosen[1], w=130),
                components.segments(
                    "kind",
                    "Spectra of",
                    _kinds(first, second),
                    view.kind,
                ),
                components.select(
                    "measure",
                    "Measure",
                    measures(),
                    view.measure if view.measure in MEASURES else "stable_rank",
                    searchable=True,
                    w=190,
                ),
            ),
            html.Div(
                [
                    components.figure(
                        "compare-map",
                        height=map_height(len(set(first.labels().values())), numbers=True),
                    ),
                    html.Div(
                        [
                            components.select(
                                "matrix",
                                "Matrix",
                                [{"value": m.name, "label": m.name} for m in first.matrices()],
                                next(
                                    (
                                        m
                                        for m in view.matrix
                                        if m in {n.name for n in first.matrices()}
                                    ),
                                    usual,
                                ),
                                searchable=True,
                                limit=300,
                            ),
                            components.figure("compare-spectra", height=300),
                        ]
                    ),
                ],
                className="pair",
            ),
            components.section("Loss", components.figure("compare-loss", height=300)),
            components.numbers_below("compare-numbers"),
        ]
    )


def register(app: Dash, library: Library) -> None:
    """Add the figures of the view's measure."""
    given = (Input("address", "search"), Input("shown", "data"), State("address", "pathname"))

    @app.callback(Output("compare-map", "figure"), *given)
    @or_reason()
    def heatmap(search: str, page: Any, pathname: str) -> Any:
        view = view_on("compare", library, pathname, search)
        found = _differences(library, view)
        if not found["names"]:
            raise InputError("The two runs share no matrix: choose runs of the same model.")
        grid, layers, roles = layer_role_grid(
            found["difference"],
            [components.escaped(label) for label in found["layers"]],
            found["roles"],
        )
        left = f"; {found['left_out']} matrices are in only one of them"
        return difference_heatmap(
            grid,
            layers,
            [escape(str(role), quote=False) for role in roles],
            title=_measure(view).replace("_", " ").capitalize(),
            subtitle=f"second minus first, of the {view.kind}{left if found['left_out'] else ''}",
        )

    @app.callback(Output("compare-spectra", "figure"), *given)
    @or_reason()
    def spectra(search: str, page: Any, pathname: str) -> Any:
        view = view_on("compare", library, pathname, search)
        sides = _sides(library, view)
        names = [m.name for m in sides[0].matrices()]
        name = next((m for m in view.matrix if m in names), names[0])
        drawn = {
            escape(f"{label}: {run.label}, step {step:,}", quote=False): run.spectrum(
                view.kind, name, step
            )
            for label, run, step in zip(
                ("first", "second"), sides, _steps(*sides, view), strict=True
            )
        }
        said = f"singular values of the {view.kind}"
        return spectra_lines(drawn, title=escape(name, quote=False), subtitle=said)

    @app.callback(Output("compare-loss", "figure"), *given)
    @or_reason()
    def loss(search: str, page: Any, pathname: str) -> Any:
        losses = {}
        for run in dict.fromkeys(_sides(library, view_on("compare", library, pathname, search))):
            train = run.train("loss")
            every = block_size(max(len(train["train_step"]), 1), POINTS)
            if np.isfinite(train["loss"]).any():
                label = escape(run.label, quote=False)
                losses[label] = (train["train_step"][::every], train["loss"][::every])
        if not losses:
            return empty("Neither run logged a loss.", height=300)
        return loss_curves(losses, title="")

    @app.callback(
        Output("compare-numbers", "children"),
        Input("compare-numbers-fold", "value"),
        Input("address", "search"),
        State("address", "pathname"),
    )
    def numbers(opened: Any, search: str, pathname: str) -> Any:
        if not opened:
            raise PreventUpdate
        found = _differences(library, view_on("compare", library, pathname, search))
        rows = [
            {"matrix": name, "first": _short(a), "second": _short(b), "difference": _short(b - a)}
            for name, a, b in zip(found["names"], found["first"], found["second"], strict=True)
        ]
        columns = [
            {"field": "matrix", "minWidth": 260},
            *({"field": f, "type": "numericColumn"} for f in ("first", "second", "difference")),
        ]
        return components.table(rows, columns)


def _kinds(first: Run, second: Run) -> list[str]:
    """Kinds of spectra that both runs have."""
    return [kind for kind in first.kinds() if kind in second.kinds()]


def _sides(library: Library, view: View) -> tuple[Run, Run]:
    first = library.run(view.run)
    return first, library.run(view.other) if view.other else first


def _options(run: Run) -> list[dict[str, str]]:
    """Snapshots to choose from, the latest first."""
    steps = run.steps()
    if not len(steps):
        raise InputError(f"{run.name} has no snapshot yet: the first one is taken at the start")
    return [{"value": str(step), "label": f"{step:,}"} for step in steps[::-1].tolist()]


def _steps(first: Run, second: Run, view: View) -> tuple[int, int]:
    """Steps to compare; by default the last of each, or the first and the last of one run."""
    own, others = first.steps(), second.steps()
    if not len(own) or not len(others):
        raise InputError("one of the two runs has no snapshot yet")
    earlier = int(own[0]) if first is second else int(own[-1])
    a = view.step if view.step is not None and view.step in own else earlier
    b = view.other_step
    return a, b if b is not None and b in others else int(others[-1])


def _differences(library: Library, view: View) -> dict[str, Any]:
    first, second = _sides(library, view)
    tables = [
        run.measures(step)
        for run, step in zip((first, second), _steps(first, second, view), strict=True)
    ]
    for run in (first, second):
        if view.kind not in run.kinds():
            raise InputError(f"{run.name} holds no spectra of the {view.kind}")
    values = [table[_measure(view)].sel(kind=view.kind) for table in tables]
    mine, theirs = ([str(n) for n in v["matrix"].to_numpy()] for v in values)
    names = [name for name in mine if name in set(theirs)]
    a, b = (v.sel(matrix=names).to_numpy().astype(float) for v in values)
    at = values[0].sel(matrix=names)
    return {
        "names": names,
        "layers": block_labels(names),
        "roles": at["role"].to_numpy().tolist(),
        "first": a,
        "second": b,
        "difference": b - a,
        "left_out": len(set(mine) ^ set(theirs)),
    }


def _measure(view: View) -> str:
    return view.measure if view.measure in MEASURES else "stable_rank"


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


PAGE = Page("Compare", layout, register, key=key, needs=2)

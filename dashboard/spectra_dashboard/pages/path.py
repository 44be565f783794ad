"""Path: costs and savings of compression at every ERR, predicted and measured, and finetuning."""

from html import escape
from typing import Any

import numpy as np
from dash import Dash, Input, Output, State, html

from spectra.allocation.methods.registry import DEFAULT
from spectra.figures.allocation import memory_curve, path_curves, perplexity_points
from spectra.figures.reduction import block_size
from spectra.figures.theme import empty
from spectra.figures.training import loss_curves
from spectra.storages.registry import DEFAULT_STORAGE, STORAGES
from spectra_dashboard import components
from spectra_dashboard.access.library import Library
from spectra_dashboard.access.run import Run
from spectra_dashboard.address import or_reason, view_on
from spectra_dashboard.pages.tails import step_options, step_value
from spectra_dashboard.registry import Page
from spectra_dashboard.view import View
from spectra_data.errors import InputError

POINTS = 2_000
EVERY = 0.05
"""Spacing in ERR of the rows of the table."""


def key(view: View) -> list[str]:
    """The page is laid out anew for another run, snapshot, method or storage."""
    return [view.run, str(view.step), view.method, view.storage]


def layout(library: Library, view: View) -> html.Div:
    """Curves over ERR, measurements, and finetuning runs."""
    run = library.run(view.run)
    steps = run.steps()
    heading = components.head(library, view, "path")
    settings = components.defaults(
        run=run.name, method=DEFAULT, storage=DEFAULT_STORAGE, step="last"
    )
    if not len(steps):
        return components.waiting(heading)
    choices = components.controls(
        components.method_select(view, "method", "Method", components.method_options("err"), w=150),
        components.select("storage", "Storage", list(STORAGES), view.storage, w=120),
        components.select("step", "Snapshot", step_options(steps), step_value(view, steps), w=140)
        if len(steps) > 1
        else None,
    )
    return html.Div(
        [
            *heading,
            settings,
            choices,
            html.Div(
                [
                    components.figure("path-curves", height=380),
                    components.figure("path-memory", height=380),
                ],
                className="pair",
            ),
            html.Div(
                [
                    components.section("Measured", _measured(run)),
                    components.section("Finetuning", _finetuning(library, run)),
                ],
                className="pair",
            ),
            components.section("At a glance", html.Div(components.loading(), id="path-numbers")),
        ]
    )


def register(app: Dash, library: Library) -> None:
    """Add the curves and the table of the view's method."""

    @app.callback(
        Output("path-curves", "figure"),
        Output("path-memory", "figure"),
        Output("path-numbers", "children"),
        Input("snapshots", "data"),
        Input("address", "search"),
        State("address", "pathname"),
    )
    @or_reason(empty("", height=380), None)
    def curves(snapshots: Any, search: str, pathname: str) -> Any:
        view = view_on("path", library, pathname, search)
        run = library.run(view.run)
        path = run.path_of(view.method, "err", view.storage, view.step).sortby("err")
        count = path.sizes["matrix"]
        err, stored = path["err"].to_numpy(), path["bytes"].to_numpy()
        about = " (approximate spectra)" if path.attrs["approximate"] else ""
        drawn = path_curves(
            err,
            path["budget"].to_numpy(),
            path["summed_error"].to_numpy() / count,
            path["lrc"].to_numpy() / count,
            subtitle=f"{view.method}, {view.storage}{about}",
        )
        dense = float(stored[0] / path["budget"].to_numpy()[0])
        memory = memory_curve(
            err,
            stored,
            dense=dense,
            subtitle=f"block parameters as {path.attrs['format']}; dotted: without compression",
        )
        memory.layout.height = 380
        return drawn, memory, _table(path, count)


def _table(path: Any, count: int) -> Any:
    grid = np.arange(0, 1 + EVERY / 2, EVERY)
    err = path["err"].to_numpy()
    rows = []
    for index in sorted({int(np.abs(err - at).argmin()) for at in grid}):
        point = path.isel(target=index)
        cut = float(point["threshold"])
        rows.append(
            {
                "ERR": round(float(point["err"]), 4),
                "threshold": None if np.isnan(cut) else round(cut, 5),
                "parameters kept": round(float(point["budget"]), 4),
                "MB": round(float(point["bytes"]) / 1e6, 2),
                "LRC": int(point["lrc"]),
                "N-LRC": count - int(point["lrc"]),
                "mean error": round(float(point["summed_error"]) / count, 4),
            }
        )
    return components.table(rows, [{"field": name, "type": "numericColumn"} for name in rows[0]])


def _measured(run: Run) -> Any:
    found = run.evaluations()
    if not found:
        store = components.shell_quoted(run.address)
        return html.P(
            [
                "No compressed checkpoint has been measured yet. The store keeps measurements: ",
                html.Code(f"spectra evaluate DIR --data TEXT --store {store}"),
                " adds one, which is drawn here next to the predictions from the spectra.",
            ],
            className="lead",
        )
    labels = [f"{e.allocation}, {e.compression}, {e.storage}" for e in found]
    texts = sorted({e.data for e in found if e.data})
    drawn = perplexity_points(
        np.array([e.err for e in found]),
        np.array([e.perplexity for e in found]),
        [escape(label, quote=False) for label in labels],
        subtitle=escape(f"on {', '.join(texts)}" if texts else "", quote=False),
    )
    return components.figure("path-measured", height=320, drawn=drawn, wait=False)


def _finetuning(library: Library, run: Run) -> Any:
    """Losses of the runs that carry a map of this run's checkpoint."""
    known = _hashes(run)
    losses = {}
    for other in library.runs.values():
        try:
            carried = other.attributes().get("rank_map")
            model = carried.get("model") if isinstance(carried, dict) else None
            if not isinstance(model, dict) or not known & _texts(model, "sha256", "name"):
                continue
            train = other.train("loss")
        except InputError:  # a broken store has its own card
            continue
        steps, loss = train["train_step"], train["loss"]
        every = block_size(max(len(steps), 1), POINTS)
        losses[escape(other.label, quote=False)] = (steps[::every], loss[::every])
    if not losses:
        return html.P(
            [
                "No run here finetunes this checkpoint. ",
                html.Code("spectra finetune"),
                " records runs that carry its rank map; so does ",
                html.Code('spectra.record(..., attrs={"rank_map": rank_map.to_dict()})'),
            ],
            className="lead",
        )
    return components.figure("path-finetuning", height=320, drawn=loss_curves(losses), wait=False)


def _hashes(run: Run) -> set[str]:
    """Identity of a run's checkpoint: its hashes, or else its name."""
    attributes = run.attributes()
    checkpoints = attributes.get("checkpoints")
    entries = checkpoints.values() if isinstance(checkpoints, dict) else ()
    hashes = set().union(*(_texts(e, "sha256") for e in entries if isinstance(e, dict)))
    model = attributes.get("model")
    return hashes or (_texts(model, "name") if isinstance(model, dict) else set())


def _texts(fields: dict[str, Any], *names: str) -> set[str]:
    """Values of the named fields that are texts; a store's attributes may hold anything."""
    return {fields[n] for n in names if isinstance(fields.get(n), str) and fields[n]}


PAGE = Page("Path", layout, register, key=key, made_for="scan")

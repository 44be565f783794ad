"""The figures of one matrix over all snapshots: drawn whole once, then row by row.

A panel is named by what it shows and its matrix, ``cosine|model.layers.0.self_attn.q_proj``. Where
a run has more snapshots than a panel has room for, rows are blocks of snapshots.
"""

import base64
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from dashboard.access.run import Run
from dashboard.view import View
from spectra.figures.dynamics import (
    FIRST_VALUES,
    coloured,
    cosine_heatmap,
    overlap_heatmap,
    spectrum_heatmap,
)
from spectra.figures.reduction import block_size, reduced

CELLS = 1_000_000
"""Of all panels of a page together, about."""
MOST_ROWS = 360
SPECTRA = ("gradient", "weight", "update")
HEIGHTS = {"cosine": 310, "overlap": 310, "gradient": 250, "weight": 250, "update": 250}


@dataclass(frozen=True)
class Held:
    """How much of a panel the browser has."""

    run: str
    rows: int
    count: int
    """Snapshots behind these rows."""
    last: int
    """The last of these snapshots' steps; another one means that the run was taken back."""
    size: int
    """Snapshots in a row."""
    how: tuple[str, ...]
    """The scale and so on, which other rows would not fit to."""


@dataclass(frozen=True)
class Rows:
    """Rows of a panel, from row no. `first` on."""

    first: int
    values: npt.NDArray[np.float32]
    """(row, column)."""
    steps: list[int]
    pairs: bool
    """Whether columns are snapshots, too."""
    held: Held

    def to_dict(self) -> dict[str, Any]:
        """As it travels: numbers as float32 bytes."""
        return {
            "first": self.first,
            "shape": list(self.values.shape),
            "values": base64.b64encode(self.values.astype("<f4").tobytes()).decode(),
            "steps": self.steps,
            "pairs": self.pairs,
            "held": asdict(self.held),
        }


def key(kind: str, matrix: str) -> str:
    """The name of a panel."""
    return f"{kind}|{matrix}"


def kinds(run: Run) -> list[str]:
    """The kinds of panels that a run has data for, from top to bottom."""
    found = []
    if run.has("sketches") or run.has("gradients"):
        found.append("cosine")
    spectra = run.kinds()
    found += [kind for kind in SPECTRA if kind in spectra]
    if run.has("subspaces"):
        found.insert(min(2, len(found)), "overlap")
    return found


def cosine_method(run: Run, view: View) -> str:
    """Exact where that is asked for and possible, or nothing else is."""
    exact = run.has("gradients") and (view.cosine == "exact" or not run.has("sketches"))
    return "exact" if exact else "sketch"


def whole(run: Run, view: View, name: str) -> tuple[go.Figure, Held]:
    """A panel's figure, and how much it holds."""
    kind, _, matrix = name.partition("|")
    found = rows(run, view, name, None)
    steps, title = np.array(found.steps), escape(_title(run, matrix), quote=False)
    if kind == "cosine":
        error = run.pairs(cosine_method(run, view), matrix).standard_error
        figure = cosine_heatmap(found.values, steps, title=title, standard_error=error)
    elif kind == "overlap":
        chance = run.pairs("overlap", matrix).chance
        figure = overlap_heatmap(found.values, steps, title=title, chance=chance)
    else:
        # the rows are coloured already
        figure = spectrum_heatmap(found.values, steps, title=title)
        figure.layout.title.subtitle.text = _said(kind, view)
        if view.scale == "log":
            figure.data[0].zmin = None
    if found.held.size > 1:
        figure.layout.title.subtitle.text += f"; largest of {found.held.size} snapshots each"
    return figure, found.held


def up_to_date(run: Run, view: View, name: str, held: Held) -> bool:
    """Whether the browser has all of a panel, shown as the view has it."""
    steps, kind = run.steps(), name.partition("|")[0]
    same = (held.run, held.how) == (run.name, _how(kind, view, run))
    return same and held.count == len(steps) and held.last == int(steps[-1])


def rows(run: Run, view: View, name: str, held: Held | None) -> Rows:
    """What the browser does not have of a panel yet; all of it where what it has does not fit."""
    kind, _, matrix = name.partition("|")
    steps = run.steps()
    size = block_size(len(steps), MOST_ROWS)
    how = _how(kind, view, run)
    first = 0
    if held and held.count and (held.run, held.size, held.how) == (run.name, size, how):
        kept = held.count <= len(steps) and steps[held.count - 1] == held.last
        # the last row may have been of fewer snapshots than it has room for
        first = (held.count // size if size > 1 else held.rows) if kept else 0
    if kind in SPECTRA:
        recorded = run.spectrum_rows(kind, matrix, first * size, FIRST_VALUES)[
            : len(steps) - first * size
        ]
        values = reduced(coloured(recorded, view.scale, view.norm), size)
    else:
        what = "overlap" if kind == "overlap" else cosine_method(run, view)
        # a snapshot may have been taken since the steps were read
        pairs = run.pairs(what, matrix).values[first * size : len(steps), : len(steps)]
        values = reduced(reduced(pairs, size), size, axis=1)
    shown = steps[first * size :: size]
    now = Held(
        run.name, first + len(values), len(steps), int(steps[-1]) if len(steps) else -1, size, how
    )
    return Rows(first, values, shown.tolist(), kind not in SPECTRA, now)


def _how(kind: str, view: View, run: Run) -> tuple[str, ...]:
    if kind in SPECTRA:
        return (view.scale, view.norm)
    return (cosine_method(run, view),) if kind == "cosine" else ()


def _said(kind: str, view: View) -> str:
    value = f"singular value of the {kind}"
    said = f"log₁₀ of {value}" if view.scale == "log" else value
    return f"{said} over the largest" if view.norm == "first" else said


def _title(run: Run, matrix: str) -> str:
    found = next((m for m in run.matrices() if m.name == matrix), None)
    return matrix if found is None else f"layer {found.layer} · {found.role}"

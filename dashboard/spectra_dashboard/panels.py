"""The figures of one matrix over all snapshots: drawn whole once, then row by row.

A panel is named by what it shows and its matrix, ``cosine|model.layers.0.self_attn.q_proj``. Where
a run has more snapshots than a panel has room for, rows are blocks of snapshots.
"""

from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from spectra.figures.dynamics import (
    FIRST_VALUES,
    coloured,
    cosine_heatmap,
    overlap_heatmap,
    spectrum_heatmap,
)
from spectra.figures.reduction import block_size, reduced
from spectra.figures.spectra import line_places, spectra_lines
from spectra.matrices import role_of, usual_choice
from spectra.quantities import QUANTITIES, shown
from spectra_dashboard.access.run import Run
from spectra_dashboard.tables import packed
from spectra_dashboard.view import View

CELLS = 1_000_000
"""Of all panels of a page together."""
MOST_MATRICES = 8
"""At a time."""
PAIRS = ("cosine", "overlap")
LINES = "lines"
HEIGHTS = {"cosine": 310, "overlap": 310, **dict.fromkeys(QUANTITIES, 250), LINES: 290}


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
            "values": packed(self.values, "<f4"),
            "steps": self.steps,
            "pairs": self.pairs,
            "held": asdict(self.held),
        }


def key(kind: str, matrix: str) -> str:
    """The name of a panel."""
    return f"{kind}|{matrix}"


def kinds(run: Run) -> list[str]:
    """The kinds of panels that a run has data for, from top to bottom."""
    spectra = [kind for kind in shown() if kind in run.kinds()]
    found = ["cosine"] if run.has("sketches") or run.has("gradients") else []
    found += spectra[:1] + (["overlap"] if run.has("subspaces") else []) + spectra[1:]
    return [*found, LINES] if spectra else found


def chosen_matrices(run: Run, view: View) -> tuple[str, ...]:
    """The matrices of the address; without any as the paper has it, else the first four."""
    matrices = run.matrices()
    names = {m.name for m in matrices}
    if asked := tuple(name for name in view.matrix if name in names)[:MOST_MATRICES]:
        return asked
    usual = usual_choice([m.name for m in matrices], [m.role for m in matrices])
    return tuple(usual) or tuple(m.name for m in matrices[:4])


def most_rows(run: Run, view: View) -> int:
    """Rows of a panel with which a page of these matrices stays within its cells."""
    found = kinds(run)
    squares = max(1, sum(kind in PAIRS for kind in found))
    linear = FIRST_VALUES * sum(kind in QUANTITIES for kind in found)
    cells = CELLS / max(1, len(chosen_matrices(run, view)))
    return int((np.sqrt(linear**2 + 4 * squares * cells) - linear) / (2 * squares))


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
    elif kind == LINES:
        figure = _lines(run, matrix, found, title)
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
    return same and held.count == len(steps) and held.last == _last(steps)


def rows(run: Run, view: View, name: str, held: Held | None) -> Rows:
    """What the browser does not have of a panel yet; all of it where what it has does not fit."""
    kind, _, matrix = name.partition("|")
    steps = run.steps()
    size = block_size(len(steps), most_rows(run, view))
    how = _how(kind, view, run)
    first = 0
    if held and held.count and (held.run, held.size, held.how) == (run.name, size, how):
        kept = held.count <= len(steps) and steps[held.count - 1] == held.last
        # the last row may have been of fewer snapshots than it has room for
        first = (held.count // size if size > 1 else held.rows) if kept else 0
    new = slice(first * size, len(steps))
    # a snapshot may have been taken since the steps were read: `new` leaves it out
    if kind in PAIRS:
        what = "overlap" if kind == "overlap" else cosine_method(run, view)
        pairs = run.pairs(what, matrix).values[new, : len(steps)]
        values = reduced(reduced(pairs, size), size, axis=1)
    elif kind == LINES:
        values = reduced(_points(run, matrix, new), size)
    else:
        recorded = run.spectrum_rows(kind, matrix, new, FIRST_VALUES)
        values = reduced(coloured(recorded, view.scale, view.norm), size)
    now = Held(run.name, first + len(values), len(steps), _last(steps), size, how)
    return Rows(first, values, steps[first * size :: size].tolist(), kind in PAIRS, now)


def _points(run: Run, matrix: str, rows: slice) -> npt.NDArray[np.float32]:
    """(row, kind and place) of the spectra's lines."""
    places = line_places(_length(run, matrix))
    return np.concatenate(
        [run.spectrum_rows(kind, matrix, rows)[:, places] for kind in run.kinds()], axis=1
    )


def _lines(run: Run, matrix: str, found: Rows, title: str) -> go.Figure:
    """The spectra at the last step; all others travel along, for the scrubber."""
    places, recorded = line_places(_length(run, matrix)), run.kinds()
    last = found.values[-1].reshape(len(recorded), -1)
    colors = [QUANTITIES[kind].color for kind in recorded]
    labels = [QUANTITIES[kind].label for kind in recorded]
    drawn = spectra_lines(dict(zip(labels, last, strict=True)), title=title, colors=colors)
    for trace, values in zip(drawn.data, last, strict=True):
        trace.x, trace.y = places + 1, values
    drawn.layout.title.subtitle.text = f"step {found.steps[-1]:,}"
    drawn.layout.meta = {
        "shape": list(found.values.shape),
        "values": packed(found.values, "<f4"),
        "size": found.held.size,
    }
    return drawn


def _length(run: Run, matrix: str) -> int:
    """The most singular values that something recorded has of a matrix."""
    found = next(m for m in run.matrices() if m.name == matrix)
    return max(QUANTITIES[kind].length(found.rows, found.cols) for kind in run.kinds())


def _last(steps: npt.NDArray[np.int64]) -> int:
    return int(steps[-1]) if len(steps) else -1


def _how(kind: str, view: View, run: Run) -> tuple[str, ...]:
    if kind in QUANTITIES:
        return (view.scale, view.norm)
    return (cosine_method(run, view),) if kind == "cosine" else ()


def _said(kind: str, view: View) -> str:
    value = f"singular value of the {QUANTITIES[kind].label}"
    said = f"log₁₀ of {value}" if view.scale == "log" else value
    return f"{said} over the largest" if view.norm == "first" else said


def _title(run: Run, matrix: str) -> str:
    found = run.labels().get(matrix)
    return matrix if found is None else f"layer {found} · {role_of(matrix)}"

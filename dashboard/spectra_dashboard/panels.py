"""The figures of one matrix over all snapshots: drawn whole once, then row by row.

The name of a panel is its kind and its matrix, ``cosine|model.layers.0.self_attn.q_proj``. If a run
has more snapshots than a panel has room for, rows are blocks of snapshots.
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
"""Most cells of all panels of a page together."""
MOST_MATRICES = 8
"""Most matrices on the page at a time."""
PAIRS = ("cosine", "overlap")
LINES = "lines"
HEIGHTS = {"cosine": 310, "overlap": 310, **dict.fromkeys(QUANTITIES, 250), LINES: 290}


@dataclass(frozen=True)
class Held:
    """The part of a panel that the browser has."""

    run: str
    rows: int
    count: int
    """Snapshots behind these rows."""
    last: int
    """Step of the last of these snapshots; another step means that the run was taken back."""
    size: int
    """Snapshots per row."""
    settings: tuple[str, ...]
    """Scale and norm, or method, of the values; rows with other settings would not fit."""


@dataclass(frozen=True)
class Rows:
    """Rows of a panel, from row `first` on."""

    first: int
    values: npt.NDArray[np.float32]
    """(row, column)."""
    steps: list[int]
    pairs: bool
    """Whether columns are snapshots too."""
    held: Held

    def to_dict(self) -> dict[str, Any]:
        """Rows as JSON, with numbers as float32 bytes."""
        return {
            "first": self.first,
            "shape": list(self.values.shape),
            "values": packed(self.values, "<f4"),
            "steps": self.steps,
            "pairs": self.pairs,
            "held": asdict(self.held),
        }


def key(kind: str, matrix: str) -> str:
    """Name of a panel."""
    return f"{kind}|{matrix}"


def kinds(run: Run) -> list[str]:
    """Kinds of panels that a run has data for, from top to bottom."""
    spectra = [kind for kind in shown() if kind in run.kinds()]
    found = ["cosine"] if run.has("sketches") or run.has("gradients") else []
    found += spectra[:1] + (["overlap"] if run.has("subspaces") else []) + spectra[1:]
    return [*found, LINES] if spectra else found


def chosen_matrices(run: Run, view: View) -> tuple[str, ...]:
    """Matrices of the address; without any, the paper's choice, or the first four."""
    matrices = run.matrices()
    names = {m.name for m in matrices}
    if chosen := tuple(name for name in view.matrix if name in names)[:MOST_MATRICES]:
        return chosen
    usual = usual_choice([m.name for m in matrices], [m.role for m in matrices])
    return tuple(usual) or tuple(m.name for m in matrices[:4])


def most_rows(run: Run, view: View) -> int:
    """Most rows of a panel that keep a page of these matrices within `CELLS`."""
    found = kinds(run)
    squares = max(1, sum(kind in PAIRS for kind in found))
    linear = FIRST_VALUES * sum(kind in QUANTITIES for kind in found)
    cells = CELLS / max(1, len(chosen_matrices(run, view)))
    return int((np.sqrt(linear**2 + 4 * squares * cells) - linear) / (2 * squares))


def cosine_method(run: Run, view: View) -> str:
    """``exact`` if the view wants it and it is possible, or if only it is; else ``sketch``."""
    exact = run.has("gradients") and (view.cosine == "exact" or not run.has("sketches"))
    return "exact" if exact else "sketch"


def whole(run: Run, view: View, name: str) -> tuple[go.Figure, Held]:
    """Figure of a panel, and the part of the run that it holds."""
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
    """Whether the browser has all of a panel, with the view's settings."""
    steps, kind = run.steps(), name.partition("|")[0]
    same = (held.run, held.settings) == (run.name, _settings(kind, view, run))
    return same and held.count == len(steps) and held.last == _last(steps)


def rows(run: Run, view: View, name: str, held: Held | None) -> Rows:
    """Rows of a panel that the browser lacks; all rows if those it has do not fit."""
    kind, _, matrix = name.partition("|")
    steps = run.steps()
    size = block_size(len(steps), most_rows(run, view))
    settings = _settings(kind, view, run)
    first = 0
    if held and held.count and (held.run, held.size, held.settings) == (run.name, size, settings):
        kept = held.count <= len(steps) and steps[held.count - 1] == held.last
        # the last row may have held fewer snapshots than it has room for
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
    now = Held(run.name, first + len(values), len(steps), _last(steps), size, settings)
    return Rows(first, values, steps[first * size :: size].tolist(), kind in PAIRS, now)


def _points(run: Run, matrix: str, rows: slice) -> npt.NDArray[np.float32]:
    """Points of the spectra's lines: (row, kind and index)."""
    indices = line_places(_length(run, matrix))
    return np.concatenate(
        [run.spectrum_rows(kind, matrix, rows)[:, indices] for kind in run.kinds()], axis=1
    )


def _lines(run: Run, matrix: str, found: Rows, title: str) -> go.Figure:
    """Spectra at the last step; those of all other steps are sent along for the scrubber."""
    indices, recorded = line_places(_length(run, matrix)), run.kinds()
    last = found.values[-1].reshape(len(recorded), -1)
    colors = [QUANTITIES[kind].color for kind in recorded]
    labels = [QUANTITIES[kind].label for kind in recorded]
    drawn = spectra_lines(dict(zip(labels, last, strict=True)), title=title, colors=colors)
    for trace, values in zip(drawn.data, last, strict=True):
        trace.x, trace.y = indices + 1, values
    drawn.layout.title.subtitle.text = f"step {found.steps[-1]:,}"
    drawn.layout.meta = {
        "shape": list(found.values.shape),
        "values": packed(found.values, "<f4"),
        "size": found.held.size,
    }
    return drawn


def _length(run: Run, matrix: str) -> int:
    """Most singular values that any recorded kind has of a matrix."""
    found = next(m for m in run.matrices() if m.name == matrix)
    return max(QUANTITIES[kind].length(found.rows, found.cols) for kind in run.kinds())


def _last(steps: npt.NDArray[np.int64]) -> int:
    return int(steps[-1]) if len(steps) else -1


def _settings(kind: str, view: View, run: Run) -> tuple[str, ...]:
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

"""Measured rows as files: CSV, figure, and claims about the paper."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectra.experiments.experiment import Outcome, Presentation
from spectra.experiments.ledger import Row
from spectra.store.durable import write_file
from spectra_data.cells import inert

if TYPE_CHECKING:
    import plotly.graph_objects as go

Point = tuple[Any, Any, str]
"""x, y and label, for the figure."""


@dataclass(frozen=True)
class Shape:
    """How measured rows are shown."""

    name: str
    presentation: Presentation
    points: Sequence[Point]
    claims: tuple[str, ...] = ()
    table: tuple[Row, ...] | None = None
    """Rows to print; None prints all columns of all rows."""


def written(
    shape: Shape, rows: Sequence[Row], folder: Path, subtitle: str, results: Path
) -> Outcome:
    """Write rows, already in the file `results`, as CSV and figure, and their claims as text."""
    import pandas as pd

    columns = tuple(c for c in _columns(shape.presentation, rows) if any(c in row for row in rows))
    csv, html = folder / f"{shape.name}.csv", folder / f"{shape.name}.html"
    table = pd.DataFrame([{inert(c): inert(row.get(c)) for c in columns} for row in rows])
    write_file(csv, table.to_csv(index=False).encode())
    figure = _figure(shape.presentation, shape.points, subtitle)
    write_file(html, figure.to_html(include_plotlyjs=True).encode())
    files = [csv, html, results]
    if shape.claims:
        text = folder / f"{shape.name}.txt"
        write_file(text, "\n".join((*shape.claims, "")).encode())
        files.append(text)
    printed = tuple(rows)
    if shape.table is not None:
        printed, columns = shape.table, tuple(shape.table[0]) if shape.table else ()
    return Outcome(
        shape.presentation.title, tuple(rows), printed, columns, tuple(files), shape.claims
    )


def _columns(presentation: Presentation, rows: Sequence[Row]) -> Iterator[str]:
    for column in presentation.columns:
        if column == "peak":
            yield from dict.fromkeys(k for row in rows for k in row if k.startswith("peak_"))
        else:
            yield column


def _figure(presentation: Presentation, points: Sequence[Point], subtitle: str) -> "go.Figure":
    import numpy as np

    from spectra.figures.results import measured_lines

    x, y, labels = zip(*points, strict=True) if points else ((), (), ())
    return measured_lines(
        np.array(x, float),
        np.array(y, float),
        list(labels),
        title=presentation.title,
        subtitle=subtitle,
        x_title=presentation.x_title,
        y_title=presentation.y.replace("_", " "),
        log=presentation.log,
        bounds=presentation.bounds,
    )

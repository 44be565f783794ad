"""Experiments by name: measure, print a table, write CSV, figure and configuration."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.experiments.ledger import Ledger, Row
from spectra.experiments.settings import Settings
from spectra.figures.results import measured_lines
from spectra.machine.progress import Progress, silent
from spectra.store.destination import make_folder
from spectra.store.durable import write_file
from spectra.store.lock import locked
from spectra_data.partial import remove_leftovers


@dataclass(frozen=True)
class Experiment:
    """One of the paper's results."""

    title: str
    columns: tuple[str, ...]
    """Of the printed table."""
    x: str
    y: str
    """What the figure draws against what."""
    x_title: str = "effective rank reduction"
    log: bool = True
    bounds: tuple[float, float] | None = None
    """Of y, so that noise does not fill the figure."""


EXPERIMENTS = {
    "table1": Experiment(
        "Table 1: perplexity by effective rank reduction",
        ("recipe", "err_asked", "err", "budget", "perplexity"),
        "err_asked",
        "perplexity",
    ),
    "table2": Experiment(
        "Table 2: SVDs that know activations, with uniform and WeLore's ranks",
        ("recipe", "err_asked", "err", "budget", "perplexity"),
        "err_asked",
        "perplexity",
    ),
    "table3": Experiment(
        "Table 3: memory for inference by ERR and context length",
        ("err", "parameters", "weight_bytes", "peak", "prefill", "decode"),
        "context",
        "peak memory, bytes",
        "context, tokens",
        log=False,
    ),
    "figure7": Experiment(
        "Figure 7: increase of perplexity when what stayed dense is pruned",
        ("err", "pruner", "sparsity", "perplexity", "increase"),
        "sparsity",
        "increase",
        "share of zeros",
    ),
    "quality": Experiment(
        "Perplexity at equal parameters",
        ("recipe", "budget_asked", "budget", "perplexity"),
        "budget_asked",
        "perplexity",
        "fraction of block parameters",
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What an experiment found, and where it lies."""

    title: str
    rows: tuple[Row, ...]
    table: tuple[Row, ...]
    """What is printed of them."""
    columns: tuple[str, ...]
    """Of the table."""
    files: tuple[Path, ...]
    claims: tuple[str, ...] = ()
    """What the paper says, and what was measured."""
    failed: tuple[str, ...] = ()
    """What could not be measured, with the reason."""


def run_experiment(
    name: str,
    checkpoint: str,
    settings: Settings,
    folder: Path,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Outcome:
    """Measure every cell that is not there yet, and write what was found.

    Parameters
    ----------
    name
        One of `EXPERIMENTS`.
    checkpoint
        A Hugging Face folder, a GGUF file, or a hub name.
    settings
        Written beside the results.
    folder
        Where cells are kept, one written as soon as it is measured.
    device
        Where the model runs.
    progress
        Called with a stage, what is done of it, and of how many.

    Raises
    ------
    InputError
        When the folder holds results of other settings, or another process writes to it.
    """
    experiment = EXPERIMENTS[name]
    known = {"experiment": name, "checkpoint": checkpoint, "device": device, **settings.to_dict()}
    known |= {"identity": open_checkpoint(checkpoint).identity, "texts": settings.fingerprints()}
    make_folder(folder)
    with locked(folder):
        remove_leftovers(folder)
        ledger = Ledger(folder, known)
        rows = list(_rows(name, checkpoint, settings, folder, device, ledger, progress))
        shape = Shape(name, experiment, list(_points(experiment, rows)))
        subtitle = f"{Path(checkpoint).name}, {Path(settings.data).name}"
        return written(shape, rows, folder, subtitle, ledger.path)


@dataclass(frozen=True)
class Shape:
    """What is made of measured rows."""

    name: str
    experiment: Experiment
    points: Sequence[tuple[Any, Any, str]]
    """x, y and label, for the figure."""
    claims: tuple[str, ...] = ()
    table: tuple[Row, ...] | None = None
    """The rows to print; all columns of all rows where it is None."""


def written(
    shape: Shape, rows: Sequence[Row], folder: Path, subtitle: str, results: Path
) -> Outcome:
    """Write rows, which are in a file of results already, as CSV and figure, and what they say as
    text.
    """
    columns = tuple(c for c in _columns(shape.experiment, rows) if any(c in row for row in rows))
    csv, html = folder / f"{shape.name}.csv", folder / f"{shape.name}.html"
    table = pd.DataFrame([{c: row.get(c) for c in columns} for row in rows])
    write_file(csv, table.to_csv(index=False).encode())
    figure = _figure(shape.experiment, shape.points, subtitle)
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
        shape.experiment.title, tuple(rows), printed, columns, tuple(files), shape.claims
    )


def _rows(
    name: str,
    checkpoint: str,
    settings: Settings,
    folder: Path,
    device: str,
    ledger: Ledger,
    progress: Progress,
) -> Iterator[Row]:
    if name == "table3":
        from spectra.experiments.inference_memory import table3

        yield from table3(checkpoint, settings, folder, device, ledger)
        return
    from spectra.experiments import tables
    from spectra.experiments.bench import Bench

    bench = Bench(checkpoint, settings, folder, device, progress)
    measured: Callable[[Bench, Ledger], Iterator[Row]] = getattr(tables, name)
    yield from measured(bench, ledger)


def _columns(experiment: Experiment, rows: Sequence[Row]) -> Iterator[str]:
    for column in experiment.columns:
        if column == "peak":
            yield from dict.fromkeys(k for row in rows for k in row if k.startswith("peak_"))
        else:
            yield column


def _figure(
    experiment: Experiment, points: Sequence[tuple[Any, Any, str]], subtitle: str
) -> go.Figure:
    x, y, labels = zip(*points, strict=True) if points else ((), (), ())
    return measured_lines(
        np.array(x, float),
        np.array(y, float),
        list(labels),
        title=experiment.title,
        subtitle=subtitle,
        x_title=experiment.x_title,
        y_title=experiment.y.replace("_", " "),
        log=experiment.log,
        bounds=experiment.bounds,
    )


def _points(experiment: Experiment, rows: Sequence[Row]) -> Iterator[tuple[Any, Any, str]]:
    for row in rows:
        if experiment.x == "context":
            peaks = {k: v for k, v in row.items() if k.startswith("peak_")}
            for key, value in peaks.items():
                yield int(key.removeprefix("peak_")), value, f"ERR {row['err']:.0%}"
        elif experiment.y in row:
            label = row.get("recipe") or f"{row['pruner']}, ERR {row['err']:.0%}"
            yield row[experiment.x], row[experiment.y], str(label)

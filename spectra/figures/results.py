"""Measured results: one line per label, over the variable of the experiment."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from spectra.figures.theme import OTHER_ROLES, legend_at_right, role_color, styled

DASHES = ("solid", "dash", "dot")
"""Dashes of lines beyond the palette."""


def measured_lines(
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    labels: Sequence[str],
    *,
    title: str,
    x_title: str,
    y_title: str,
    subtitle: str = "",
    log: bool = True,
    bounds: tuple[float, float] | None = None,
) -> go.Figure:
    """Points with equal labels, joined in the order of x.

    Parameters
    ----------
    x, y
        (measurement,).
    labels
        (measurement,) label of each measurement.
    title, subtitle
        Text above the figure.
    x_title, y_title
        Titles of the axes.
    log
        Whether y is logarithmic.
    bounds
        Bounds of y; those of the points by default.
    """
    figure = go.Figure()
    of = np.array(list(labels), dtype=object)
    for number, label in enumerate(dict.fromkeys(labels)):
        mine = np.flatnonzero(of == label)
        mine = mine[np.argsort(x[mine], kind="stable")]
        figure.add_scatter(
            x=x[mine], y=y[mine], name=label, mode="lines+markers",
            line={
                "color": role_color("", number), "width": 1.6,
                "dash": DASHES[number // len(OTHER_ROLES) % len(DASHES)],
            }, marker={"size": 7},
            hovertemplate=f"{label}<br>{x_title} %{{x:.3g}}<br>{y_title} %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
    at_right = {"showlegend": True, "legend": legend_at_right()}
    styled(figure, title=title, subtitle=subtitle, height=320, **at_right)
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title, type="log" if log else "linear", range=bounds)
    return figure

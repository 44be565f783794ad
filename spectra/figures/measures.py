"""One measure at a time: over training by role, and over the model by layer and role."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from spectra.figures.theme import SEQUENTIAL, colorbar, legend_at_right, role_color, styled


def measure_lines(
    values: Mapping[str, npt.NDArray[Any]],
    steps: npt.NDArray[np.int64],
    *,
    title: str,
    subtitle: str = "median over matrices, with the range of the middle half",
) -> go.Figure:
    """A measure over training, a line for each role.

    Parameters
    ----------
    values
        By role (step, matrix); NaN leaves a gap.
    steps
        (step,) training steps.
    title
        The measure.
    subtitle
        Below it.
    """
    figure = go.Figure()
    for number, (role, of_role) in enumerate(values.items()):
        low, median, high = _quartiles(of_role)
        color = role_color(role, number)
        there = np.isfinite(median)
        figure.add_scatter(
            x=np.concatenate([steps[there], steps[there][::-1]]),
            y=np.concatenate([high[there], low[there][::-1]]),
            fill="toself", fillcolor=color, opacity=0.12, line={"width": 0}, hoverinfo="skip",
            showlegend=False, legendgroup=role,
        )  # fmt: skip
        figure.add_scatter(
            x=steps, y=median, name=role, legendgroup=role, mode="lines",
            line={"color": color, "width": 1.8},
            hovertemplate=f"{role}, step %{{x}}<br>%{{y:.4g}}<extra></extra>",
        )  # fmt: skip
    styled(figure, title=title, subtitle=subtitle, height=330)
    figure.update_layout(legend=legend_at_right())
    figure.update_xaxes(title="step")
    return figure


def layer_role_heatmap(
    values: npt.NDArray[Any],
    layers: Sequence[int],
    roles: Sequence[str],
    *,
    title: str,
    subtitle: str = "",
) -> go.Figure:
    """A measure of every matrix: layers from top to bottom, roles from left to right.

    Parameters
    ----------
    values
        (layer, role); NaN leaves a gap.
    layers, roles
        Their names.
    title
        The measure.
    subtitle
        Below it.
    """
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=list(roles),
            y=list(layers),
            colorscale=SEQUENTIAL,
            colorbar=colorbar(),
            xgap=1,
            ygap=1,
            hovertemplate="layer %{y}, %{x}<br>%{z:.4g}<extra></extra>",
        )
    )
    styled(figure, title=title, subtitle=subtitle, height=max(330, 90 + 14 * len(layers)))
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(
        title="layer", autorange="reversed", showgrid=False, tickformat="d",
        tickvals=list(layers)[:: max(1, len(layers) // 8)],
    )  # fmt: skip
    return figure


def _quartiles(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(3, step), NaN where no layer has a value."""
    found = np.full((3, len(values)), np.nan)
    there = np.isfinite(values).any(axis=1)
    found[:, there] = np.nanquantile(values[there], [0.25, 0.5, 0.75], axis=1)
    return found

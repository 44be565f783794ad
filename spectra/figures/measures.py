"""One measure at a time: over training by role, and over the model by layer and role."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from spectra.figures.theme import (
    DIVERGING,
    SEQUENTIAL,
    colorbar,
    legend_at_right,
    role_color,
    styled,
)
from spectra.matrices import in_order


def measure_lines(
    values: Mapping[str, npt.NDArray[Any]],
    steps: npt.NDArray[np.int64],
    *,
    title: str,
    subtitle: str = "median over matrices, with the range of the middle half",
) -> go.Figure:
    """A measure over training, one line per role.

    Parameters
    ----------
    values
        (step, matrix) by role; NaN leaves a gap.
    steps
        (step,) training steps.
    title
        Name of the measure.
    subtitle
        Text below the title.
    """
    traces = []
    for number, (role, of_role) in enumerate(values.items()):
        low, median, high = _quartiles(of_role)
        color = role_color(role, number)
        there = np.isfinite(median)
        spread = go.Scatter(
            x=np.concatenate([steps[there], steps[there][::-1]]),
            y=np.concatenate([high[there], low[there][::-1]]),
            fill="toself", fillcolor=color, opacity=0.12, line={"width": 0}, hoverinfo="skip",
            showlegend=False, legendgroup=role,
        )  # fmt: skip
        line = go.Scatter(
            x=steps, y=median, name=role, legendgroup=role, mode="lines",
            line={"color": color, "width": 1.8},
            hovertemplate=f"{role}, step %{{x}}<br>%{{y:.4g}}<extra></extra>",
        )  # fmt: skip
        traces += [spread, line]
    figure = go.Figure(traces)
    styled(figure, title=title, subtitle=subtitle, height=330, legend=legend_at_right())
    figure.update_xaxes(title="step")
    return figure


def layer_role_grid(
    values: npt.NDArray[Any], layer_of: Sequence[int | str], role_of: Sequence[str]
) -> tuple[npt.NDArray[np.float64], list[int | str], list[str]]:
    """(matrix,) values as (layer, role), with the names of both; see `block_labels` for layers.

    A cell that several matrices share, as a layer's experts do, gets their median; a cell without
    a matrix gets NaN.
    """
    layers, roles = in_order(layer_of), list(dict.fromkeys(role_of))
    cells: dict[tuple[int | str, str], list[float]] = defaultdict(list)
    for layer, role, value in zip(layer_of, role_of, values, strict=True):
        if np.isfinite(value):
            cells[layer, role].append(float(value))
    grid = [
        [float(np.median(cells.get((layer, role), [np.nan]))) for role in roles] for layer in layers
    ]
    return np.array(grid).reshape(len(layers), len(roles)), layers, roles


def layer_role_heatmap(
    values: npt.NDArray[Any],
    layers: Sequence[int | str],
    roles: Sequence[str],
    *,
    title: str,
    subtitle: str = "",
    numbers: bool = False,
) -> go.Figure:
    """A measure of every matrix: layers from top to bottom, roles from left to right.

    Parameters
    ----------
    values
        (layer, role); NaN leaves a gap.
    layers, roles
        Names of the layers and the roles.
    title
        Name of the measure.
    subtitle
        Text below the title.
    numbers
        Whether the cells show their values.
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
            texttemplate="%{z:.3~g}" if numbers else None,
            hovertemplate="layer %{y}, %{x}<br>%{z:.4g}<extra></extra>",
        )
    )
    return on_layers_and_roles(figure, layers, title=title, subtitle=subtitle, numbers=numbers)


def difference_heatmap(
    differences: npt.NDArray[Any],
    layers: Sequence[int | str],
    roles: Sequence[str],
    *,
    title: str,
    subtitle: str = "",
) -> go.Figure:
    """Difference of a measure between two snapshots; colours are centred at 0.

    Parameters
    ----------
    differences
        (layer, role); NaN leaves a gap.
    layers, roles
        Names of the layers and the roles.
    title
        Name of the measure.
    subtitle
        Text below the title.
    """
    finite = np.abs(differences[np.isfinite(differences)])
    most = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    figure = go.Figure(
        go.Heatmap(
            z=differences,
            x=list(roles),
            y=list(layers),
            zmin=-most,
            zmax=most,
            colorscale=DIVERGING,
            colorbar=colorbar(),
            xgap=1,
            ygap=1,
            texttemplate="%{z:+.3~g}",
            hovertemplate="layer %{y}, %{x}<br>difference %{z:+.4g}<extra></extra>",
        )
    )
    return on_layers_and_roles(figure, layers, title=title, subtitle=subtitle, numbers=True)


def map_height(layers: int, numbers: bool = False) -> int:
    """Height in pixels of a figure with this many layers."""
    return max(330, 92 + (19 if numbers else 14) * layers)


def on_layers_and_roles(
    figure: go.Figure,
    layers: Sequence[int | str],
    *,
    title: str,
    subtitle: str = "",
    numbers: bool = False,
) -> go.Figure:
    """Give a figure with layers down and roles across the common look."""
    styled(figure, title=title, subtitle=subtitle, height=map_height(len(layers), numbers))
    figure.update_traces(textfont={"size": 10})
    figure.update_xaxes(type="category", showgrid=False, ticks="")
    if any(isinstance(layer, str) for layer in layers):
        figure.update_yaxes(type="category")
    figure.update_yaxes(
        title="layer", autorange="reversed", showgrid=False, tickformat="d", ticks="",
        tickvals=list(layers)[:: max(1, len(layers) // 8)],
    )  # fmt: skip
    return figure


def _quartiles(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Quartiles (3, step); NaN where no matrix has a value."""
    found = np.full((3, len(values)), np.nan)
    there = np.isfinite(values).any(axis=1)
    found[:, there] = np.nanquantile(values[there], [0.25, 0.5, 0.75], axis=1)
    return found

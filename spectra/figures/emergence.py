"""The paper's claim, one point per matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from spectra.figures.theme import RULE, legend_at_right, role_color, styled


def emergence_scatter(
    cause: npt.NDArray[Any],
    outcome: npt.NDArray[Any],
    roles: Sequence[str],
    names: Sequence[str],
    *,
    title: str,
    subtitle: str,
    cause_label: str,
    outcome_label: str,
) -> go.Figure:
    """How gradients behaved against how low-rank the weights became.

    Parameters
    ----------
    cause, outcome
        (matrix,) each.
    roles, names
        Roles and names of the matrices.
    title, subtitle
        Text above the figure; the subtitle has room for the correlation.
    cause_label, outcome_label
        Titles of the axes.
    """
    figure = go.Figure()
    of = np.array(list(roles), dtype=object)
    for number, role in enumerate(dict.fromkeys(roles)):
        mine = of == role
        figure.add_scatter(
            x=cause[mine], y=outcome[mine], name=role, mode="markers",
            marker={"color": role_color(role, number), "size": 9,
                    "line": {"color": RULE, "width": 0.5}},
            customdata=np.array(list(names), dtype=object)[mine],
            hovertemplate="%{customdata}<br>%{x:.3g}, %{y:.3g}<extra></extra>",
        )  # fmt: skip
    styled(figure, title=title, subtitle=subtitle, height=360, legend=legend_at_right())
    figure.update_xaxes(title=cause_label)
    figure.update_yaxes(title=outcome_label)
    return figure


def correlation_forest(
    correlation: npt.NDArray[Any],
    low: npt.NDArray[Any],
    high: npt.NDArray[Any],
    labels: Sequence[str],
    *,
    title: str,
    subtitle: str,
) -> go.Figure:
    """Correlations with their intervals, one below the other.

    Parameters
    ----------
    correlation, low, high
        (entry,), in [-1, 1]; NaN entries are left out.
    labels
        Names of the entries.
    title, subtitle
        Text above the figure.
    """
    there = np.isfinite(correlation)
    kept = [label for label, shown in zip(labels, there, strict=True) if shown]
    figure = go.Figure(
        go.Scatter(
            x=correlation[there],
            y=kept,
            mode="markers",
            marker={"size": 9, "color": role_color("q")},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (high - correlation)[there],
                "arrayminus": (correlation - low)[there],
                "thickness": 1.4,
                "width": 4,
            },
            hovertemplate="%{y}<br>%{x:.2f}<extra></extra>",
            showlegend=False,
        )
    )
    styled(figure, title=title, subtitle=subtitle, height=max(360, 110 + 26 * len(kept)))
    figure.add_vline(x=0, line={"color": RULE, "width": 2})
    figure.update_xaxes(title="rank correlation", range=[-1.02, 1.02])
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure

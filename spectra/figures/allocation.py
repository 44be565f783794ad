"""Rank maps: what each matrix loses (the paper's figure 6), and the path of compression."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from spectra.figures.theme import ACCENT, INK, MUTED, SECOND, legend_at_right, role_color, styled


def rank_reduction(
    reductions: Mapping[str, npt.NDArray[Any]],
    layers: Mapping[str, npt.NDArray[Any]],
    *,
    lrc_factor: float = 0.5,
    title: str = "Rank reduction by layer and role",
    subtitle: str = "",
) -> go.Figure:
    """Removed ranks over full rank of every matrix, and the line above which it is an LRC.

    Parameters
    ----------
    reductions
        By role (matrix,).
    layers
        By role (matrix,); several matrices may share a layer.
    lrc_factor
        Of the LRC rule.
    title, subtitle
        Above the figure.
    """
    figure = go.Figure()
    for number, (role, values) in enumerate(reductions.items()):
        alone = len(np.unique(layers[role])) == len(layers[role])
        figure.add_scatter(
            x=layers[role], y=values, name=role,
            mode="lines+markers" if alone else "markers",
            line={"color": role_color(role, number), "width": 1.6},
            marker={"color": role_color(role, number), "size": 6 if alone else 4},
            hovertemplate=f"{role}, layer %{{x}}<br>%{{y:.1%}} of the ranks<extra></extra>",
        )  # fmt: skip
    said = f"{subtitle}; " if subtitle else ""
    styled(figure, title=title, subtitle=f"{said}above the dashed line: LRC", height=380)
    figure.add_hline(y=1 - lrc_factor, line={"color": INK, "width": 1.2, "dash": "dash"})
    figure.update_layout(legend=legend_at_right())
    figure.update_xaxes(title="layer", tickformat="d")
    figure.update_yaxes(title="ranks removed", tickformat=".0%", range=[-0.02, 1.02])
    return figure


def path_curves(
    err: npt.NDArray[Any],
    budget: npt.NDArray[Any],
    mean_error: npt.NDArray[Any],
    lrc: npt.NDArray[Any],
    *,
    subtitle: str = "",
) -> go.Figure:
    """What is stored and lost at every ERR: (target,) each, all in [0, 1].

    Parameters
    ----------
    err
        Effective rank reduction.
    budget
        Fraction of block parameters stored.
    mean_error
        Relative truncation error, averaged over matrices.
    lrc
        Share of matrices that are LRCs.
    subtitle
        Below the title.
    """
    figure = go.Figure()
    lines = {
        "parameters stored": (budget, ACCENT, "solid"),
        "mean relative error": (mean_error, SECOND, "solid"),
        "matrices that are LRC": (lrc, MUTED, "dot"),
    }
    for name, (values, color, dash) in lines.items():
        figure.add_scatter(
            x=err, y=values, name=name, mode="lines",
            line={"color": color, "width": 1.8, "dash": dash},
            hovertemplate=f"ERR %{{x:.3f}}<br>{name} %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    styled(figure, title="The path of compression", subtitle=subtitle, height=380)
    figure.update_layout(
        legend={"orientation": "h", "y": 1.0, "x": 0, "xanchor": "left", "yanchor": "bottom"}
    )
    figure.update_layout(margin={"t": 74})
    figure.update_xaxes(title="effective rank reduction", range=[0, 1])
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return figure

"""Rank maps: ranks that each matrix loses (the paper's figure 6), and the path of compression."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import plotly.graph_objects as go

from spectra.figures.measures import on_layers_and_roles
from spectra.figures.results import measured_lines
from spectra.figures.theme import (
    ACCENT,
    INK,
    MUTED,
    SECOND,
    SEQUENTIAL,
    colorbar,
    legend_at_right,
    role_color,
    styled,
)
from spectra.matrices import in_order

LRC_MARK = "●"


def rank_map(
    shares: npt.NDArray[Any],
    labels: Sequence[Sequence[str]],
    layers: Sequence[int | str],
    roles: Sequence[str],
    *,
    title: str,
    subtitle: str = f"colour: share of the ranks kept; number: rank; {LRC_MARK} LRC",
) -> go.Figure:
    """Rank of every matrix: layers from top to bottom, roles from left to right.

    Parameters
    ----------
    shares
        (layer, role) shares of ranks kept, in [0, 1]; NaN leaves a gap.
    labels
        (layer, role) texts of the cells: the rank, with `LRC_MARK` if the matrix is an LRC.
    layers, roles
        Names of the layers and the roles.
    title, subtitle
        Text above the figure.
    """
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            text=labels,
            x=list(roles),
            y=list(layers),
            zmin=0,
            zmax=1,
            colorscale=SEQUENTIAL,
            colorbar={**colorbar(), "tickformat": ".0%"},
            xgap=1,
            ygap=1,
            texttemplate="%{text}",
            hovertemplate="layer %{y}, %{x}<br>rank %{text}<br>%{z:.1%} kept<extra></extra>",
        )
    )
    return on_layers_and_roles(figure, layers, title=title, subtitle=subtitle, numbers=True)


def rank_reduction(
    reductions: Mapping[str, npt.NDArray[Any]],
    layers: Mapping[str, Sequence[int | str]],
    *,
    lrc_factor: float = 0.5,
    title: str = "Rank reduction by layer and role",
    subtitle: str = "",
) -> go.Figure:
    """Removed ranks over full rank of every matrix, and the line above which it is an LRC.

    Parameters
    ----------
    reductions
        (matrix,) shares of ranks removed, by role.
    layers
        (matrix,) layers, by role; several matrices may share a layer.
    lrc_factor
        Share of the full rank below which a matrix is an LRC.
    title, subtitle
        Text above the figure.
    """
    figure = go.Figure()
    for number, (role, values) in enumerate(reductions.items()):
        alone = len(set(layers[role])) == len(layers[role])
        figure.add_scatter(
            x=list(layers[role]), y=values, name=role,
            mode="lines+markers" if alone else "markers",
            line={"color": role_color(role, number), "width": 1.6},
            marker={"color": role_color(role, number), "size": 6 if alone else 4},
            hovertemplate=f"{role}, layer %{{x}}<br>%{{y:.1%}} of the ranks<extra></extra>",
        )  # fmt: skip
    said = f"{subtitle}; " if subtitle else ""
    subtitle = f"{said}above the dashed line: LRC"
    styled(figure, title=title, subtitle=subtitle, height=380, legend=legend_at_right())
    figure.add_hline(y=1 - lrc_factor, line={"color": INK, "width": 1.2, "dash": "dash"})
    figure.update_xaxes(title="layer", tickformat="d")
    rows = in_order(layer for of_role in layers.values() for layer in of_role)
    if any(isinstance(layer, str) for layer in rows):
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=rows)
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
    """Parameters stored and error made at every ERR: (target,) each, all in [0, 1].

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
        Text below the title.
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
    styled(
        figure, title="The path of compression", subtitle=subtitle, height=380, margin={"b": 96},
        legend={"orientation": "h", "y": -0.2, "x": 0, "xanchor": "left", "yanchor": "top"},
    )  # fmt: skip
    figure.update_xaxes(title="effective rank reduction", range=[0, 1])
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return figure


def memory_curve(
    err: npt.NDArray[Any], stored: npt.NDArray[Any], *, dense: float, subtitle: str = ""
) -> go.Figure:
    """Bytes of the block parameters at every ERR, with those of the dense matrices.

    Parameters
    ----------
    err, stored
        (target,) effective rank reduction, and bytes.
    dense
        Bytes without compression.
    subtitle
        Text below the title.
    """
    size, unit = (1e9, "GB") if dense >= 1e9 else (1e6, "MB")
    figure = go.Figure(
        go.Scatter(
            x=err, y=stored / size, mode="lines", name="stored",
            line={"color": ACCENT, "width": 1.8},
            hovertemplate=f"ERR %{{x:.3f}}<br>%{{y:.3g}} {unit}<extra></extra>",
        )
    )  # fmt: skip
    title = "Memory of the blocks"
    styled(figure, title=title, subtitle=subtitle, height=320, showlegend=False)
    figure.add_hline(y=dense / size, line={"color": MUTED, "width": 1.2, "dash": "dot"})
    figure.update_xaxes(title="effective rank reduction", range=[0, 1])
    figure.update_yaxes(title=unit, rangemode="tozero")
    return figure


def perplexity_points(
    err: npt.NDArray[Any],
    perplexity: npt.NDArray[Any],
    labels: Sequence[str],
    *,
    subtitle: str = "",
) -> go.Figure:
    """Measured perplexity of compressed checkpoints, one line per method.

    Parameters
    ----------
    err, perplexity
        (evaluation,) each.
    labels
        (evaluation,) method of each compression; a line joins equal ones.
    subtitle
        Text below the title.
    """
    figure = measured_lines(
        err,
        perplexity,
        labels,
        title="Measured perplexity",
        subtitle=subtitle,
        x_title="effective rank reduction",
        y_title="perplexity",
    )
    return figure.update_xaxes(range=[0, 1])

"""How every figure looks: one type scale, one palette, colours that mean the same everywhere."""

from typing import Any

import plotly.graph_objects as go

INK = "#1f2430"
MUTED = "#6b7280"
RULE = "#e5e7eb"
ACCENT = "#2f5d8a"
SECOND = "#c2571a"
FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"

DIVERGING = "RdBu_r"
"""For signed values around zero, always over [-1, 1] for cosines."""
SEQUENTIAL = "Viridis"
"""Perceptually uniform, for magnitudes."""


def styled(figure: go.Figure, *, title: str, height: int) -> go.Figure:
    """Give a figure the common look."""
    figure.update_layout(
        title={"text": title, "font": {"size": 13, "color": INK}, "x": 0, "xref": "paper"},
        font={"family": FONT, "size": 11, "color": MUTED},
        height=height,
        margin={"l": 52, "r": 12, "t": 34, "b": 40},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "x": 1, "xanchor": "right", "yanchor": "bottom"},
    )
    figure.update_xaxes(**_axis())
    figure.update_yaxes(**_axis())
    return figure


def colorbar(title: str) -> dict[str, Any]:
    """A slim colour scale."""
    return {"title": {"text": title, "side": "right"}, "thickness": 10, "outlinewidth": 0, "len": 1}


def _axis() -> dict[str, Any]:
    return {"gridcolor": RULE, "zeroline": False, "linecolor": RULE, "ticks": "outside"}

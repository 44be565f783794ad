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


def styled(figure: go.Figure, *, title: str, height: int, subtitle: str = "") -> go.Figure:
    """Give a figure the common look."""
    figure.update_layout(
        title={
            "text": title,
            "font": {"size": 12.5, "color": INK},
            "subtitle": {"text": subtitle, "font": {"size": 11, "color": MUTED}},
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 6},
        },
        font={"family": FONT, "size": 11, "color": MUTED},
        height=height,
        margin={"l": 46, "r": 8, "t": 54, "b": 38},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "x": 1, "xanchor": "right", "yanchor": "bottom"},
    )
    figure.update_xaxes(**_axis())
    figure.update_yaxes(**_axis())
    return figure


def colorbar() -> dict[str, Any]:
    """A slim colour scale; what it shows stands in the figure's subtitle."""
    return {
        "thickness": 10,
        "outlinewidth": 0,
        "len": 1,
        "lenmode": "fraction",
        "xpad": 6,
        "ypad": 0,
    }


def _axis() -> dict[str, Any]:
    return {"gridcolor": RULE, "zeroline": False, "linecolor": RULE, "ticks": "outside"}

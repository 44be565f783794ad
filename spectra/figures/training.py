"""Loss over training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from spectra.figures.theme import ACCENT, SECOND, legend_at_right, role_color, styled


def loss_curve(
    steps: npt.NDArray[np.int64],
    loss: npt.NDArray[Any],
    validation_loss: npt.NDArray[Any] | None = None,
    *,
    title: str = "Loss",
) -> go.Figure:
    """Training loss of every step, and validation loss at the steps where it was evaluated.

    Parameters
    ----------
    steps
        (train_step,) numbers of the steps.
    loss, validation_loss
        (train_step,) in nats; NaN where not evaluated.
    title
        Text above the figure.
    """
    figure = go.Figure(
        go.Scatter(
            x=steps,
            y=loss,
            name="training",
            mode="lines",
            line={"color": ACCENT, "width": 1.2},
            hovertemplate="step %{x}<br>training loss %{y:.4f}<extra></extra>",
        )
    )
    if validation_loss is not None and np.isfinite(validation_loss).any():
        there = np.isfinite(validation_loss)
        figure.add_scatter(
            x=steps[there],
            y=validation_loss[there],
            name="validation",
            mode="lines+markers",
            line={"color": SECOND, "width": 1.6},
            marker={"size": 6},
            hovertemplate="step %{x}<br>validation loss %{y:.4f}<extra></extra>",
        )
    styled(figure, title=title, height=280)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="loss (nats)")
    return figure


def loss_curves(
    losses: Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[Any]]],
    *,
    title: str = "Training loss",
    subtitle: str = "",
) -> go.Figure:
    """Training losses of several runs.

    Parameters
    ----------
    losses
        (train_step,) numbers of the steps and (train_step,) losses in nats, by run.
    title, subtitle
        Text above the figure.
    """
    figure = go.Figure()
    for number, (name, (steps, loss)) in enumerate(losses.items()):
        color = (ACCENT, SECOND)[number] if number < 2 else role_color("", number)
        figure.add_scatter(
            x=steps, y=loss, name=name, mode="lines", line={"color": color, "width": 1.3},
            hovertemplate=f"{name}<br>step %{{x}}<br>loss %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
    at_right = {"showlegend": True, "legend": legend_at_right()}
    styled(figure, title=title, subtitle=subtitle, height=300, **at_right)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="loss (nats)")
    return figure

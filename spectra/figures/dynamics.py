"""The paper's figures 2 and 3: how gradients turn and spectra change over training."""

from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from spectra.figures.theme import DIVERGING, SEQUENTIAL, colorbar, styled

FIRST_VALUES = 100
"""Singular values shown, as in the paper."""


def cosine_heatmap(
    cosine: npt.NDArray[Any],
    steps: npt.NDArray[np.int64],
    *,
    title: str,
    standard_error: float | None = None,
) -> go.Figure:
    """Cosine similarity of the gradients of all pairs of snapshots (figure 2, row 1).

    Parameters
    ----------
    cosine
        (step, step), in [-1, 1]; NaN leaves a gap.
    steps
        (step,) training steps.
    title
        Name of the matrix.
    standard_error
        Standard error of an approximate cosine, for the subtitle; None if it is exact.
    """
    label = (
        "cosine, exact" if standard_error is None else f"cosine, approximate ±{standard_error:.3f}"
    )
    figure = go.Figure(
        go.Heatmap(
            z=cosine,
            x=steps,
            y=steps,
            zmin=-1,
            zmax=1,
            colorscale=DIVERGING,
            colorbar=colorbar(),
            hovertemplate="step %{y} and step %{x}<br>cosine %{z:.3f}<extra></extra>",
        )
    )
    styled(figure, title=title, subtitle=label, height=310)
    figure.update_xaxes(title="step", constrain="domain")
    figure.update_yaxes(title="step", autorange="reversed", scaleanchor="x", constrain="domain")
    return figure


def overlap_heatmap(
    overlap: npt.NDArray[Any], steps: npt.NDArray[np.int64], *, title: str, chance: float
) -> go.Figure:
    """Overlap of the gradients' leading subspaces of all pairs of snapshots.

    Parameters
    ----------
    overlap
        (step, step), in [0, 1]; NaN leaves a gap.
    steps
        (step,) training steps.
    title
        Name of the matrix.
    chance
        Overlap of unrelated subspaces, at which the colours start.
    """
    figure = go.Figure(
        go.Heatmap(
            z=overlap,
            x=steps,
            y=steps,
            zmin=chance,
            zmax=1,
            colorscale=SEQUENTIAL,
            colorbar=colorbar(),
            hovertemplate="step %{y} and step %{x}<br>overlap %{z:.3f}<extra></extra>",
        )
    )
    styled(figure, title=title, subtitle=f"overlap, by chance {chance:.3f}", height=310)
    figure.update_xaxes(title="step", constrain="domain")
    figure.update_yaxes(title="step", autorange="reversed", scaleanchor="x", constrain="domain")
    return figure


def spectrum_heatmap(
    spectra: npt.NDArray[Any],
    steps: npt.NDArray[np.int64],
    *,
    title: str,
    values: int = FIRST_VALUES,
    scale: str = "linear",
    norm: str = "raw",
) -> go.Figure:
    """Leading singular values, one row per snapshot (figure 2, row 2, and figure 3).

    Parameters
    ----------
    spectra
        (step, index), descending along the index.
    steps
        (step,) training steps.
    title
        Name of the matrix.
    values
        Number of leading values to show.
    scale
        Scale of the colours: ``linear``, or ``log`` for logarithms.
    norm
        ``raw`` values, or ``first``: values over the largest of each snapshot.
    """
    shown = coloured(spectra[:, :values], scale, norm)
    logarithmic = scale == "log"
    said = "log₁₀ of singular value" if logarithmic else "singular value"
    figure = go.Figure(
        go.Heatmap(
            z=shown,
            x=np.arange(1, shown.shape[1] + 1),
            y=steps,
            colorscale=SEQUENTIAL,
            zmin=None if logarithmic else 0,
            colorbar=colorbar(),
            hovertemplate=f"step %{{y}}, value no. %{{x}}<br>{said} %{{z:.4g}}<extra></extra>",
        )
    )
    subtitle = f"{said} over the largest" if norm == "first" else said
    styled(figure, title=title, subtitle=subtitle, height=250)
    figure.update_xaxes(title="singular value no.")
    figure.update_yaxes(title="step", autorange="reversed")
    return figure


def coloured(spectra: npt.NDArray[Any], scale: str, norm: str) -> npt.NDArray[Any]:
    """Values (step, index) that the colours of `spectrum_heatmap` stand for."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if norm == "first":
            spectra = np.where(spectra[:, :1] > 0, spectra / spectra[:, :1], np.nan)
        if scale == "log":
            spectra = np.where(spectra > 0, np.log10(spectra), np.nan)
    return spectra

"""Spectra themselves: the paper's figure 4, and tails with their fits."""

from collections.abc import Mapping, Sequence
from itertools import chain, cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from spectra.figures.reduction import shortened
from spectra.figures.theme import ACCENT, INK, MUTED, SECOND, SEQUENTIAL, styled
from spectra.matrices import in_order

POINTS = 120
"""Points on a line; more would not show."""
COLUMNS = 4


def normalised_spectra(
    spectra: Mapping[str, npt.NDArray[Any]],
    layers: Mapping[str, Sequence[int | str]],
    *,
    threshold: float,
    title: str = "Normalised singular values by role",
) -> go.Figure:
    """One panel per role with one line per layer, and the threshold (figure 4).

    Parameters
    ----------
    spectra
        Singular values (matrix, index) by role, descending, padded with NaN.
    layers
        Layers (matrix,) by role, drawn from dark to light.
    threshold
        Threshold on values normalised to [0, 1] by (s - least)/(greatest - least); WeLore removes
        those under it.
    title
        Text above the figure.
    """
    rows = -(-len(spectra) // COLUMNS)
    figure = make_subplots(
        rows, min(COLUMNS, len(spectra)), shared_xaxes="all", shared_yaxes="all",
        subplot_titles=list(spectra), horizontal_spacing=0.03,
        vertical_spacing=min(0.12, 0.4 / rows),
    )  # fmt: skip
    rows_of = {label: n for n, label in enumerate(in_order(chain.from_iterable(layers.values())))}
    deepest = len(rows_of) - 1
    for number, (role, values) in enumerate(spectra.items()):
        where = {"row": number // COLUMNS + 1, "col": number % COLUMNS + 1}
        for spectrum, layer in zip(values, layers[role], strict=True):
            share, normalised = _normalised(spectrum)
            if not len(share):
                continue
            (color,) = sample_colorscale(SEQUENTIAL, [0.9 * rows_of[layer] / max(deepest, 1)])
            figure.add_scatter(
                x=share, y=normalised, mode="lines", line={"color": color, "width": 1.2},
                showlegend=False, **where,
                hovertemplate=f"{role}, layer {layer}<br>%{{x:.0%}} of the ranks<br>"
                "normalised value %{y:.3f}<extra></extra>",
            )  # fmt: skip
    subtitle = f"over the share of the ranks; the first layer dark; dashed: threshold {threshold:g}"
    styled(figure, title=title, subtitle=subtitle, height=90 + 190 * rows, margin={"t": 74})
    figure.update_annotations(font={"size": 12, "color": INK})
    figure.add_hline(y=threshold, line={"color": SECOND, "width": 1.2, "dash": "dash"})
    figure.update_xaxes(tickformat=".0%", range=[0, 1], tickvals=[0, 0.5])
    figure.update_yaxes(range=[0, 1])
    return figure


def spectra_lines(
    spectra: Mapping[str, npt.NDArray[Any]],
    *,
    title: str,
    subtitle: str = "",
    logarithmic: bool = True,
    colors: Sequence[str] = (ACCENT, SECOND, MUTED),
) -> go.Figure:
    """Several spectra of one matrix in one figure.

    Parameters
    ----------
    spectra
        Singular values (index,) by name, descending, padded with NaN.
    title, subtitle
        Text above the figure.
    logarithmic
        Whether values are on a logarithmic axis.
    colors
        Colours that the lines cycle through.
    """
    figure = go.Figure()
    for color, (name, values) in zip(cycle(colors), spectra.items(), strict=False):
        there = np.flatnonzero(np.isfinite(values))
        there = there[line_places(len(there))]
        figure.add_scatter(
            x=there + 1, y=shortened(values[there]), name=name, mode="lines",
            line={"color": color, "width": 1.6},
            hovertemplate=f"{name}<br>value no. %{{x}}<br>%{{y:.4g}}<extra></extra>",
        )  # fmt: skip
    styled(
        figure, title=title, subtitle=subtitle, height=290, showlegend=True,
        legend={"y": 0, "x": 0, "xanchor": "left", "yanchor": "bottom", "orientation": "v",
                "bgcolor": "rgba(255,255,255,0)"},
    )  # fmt: skip
    figure.update_xaxes(title="singular value no.")
    if logarithmic:
        figure.update_yaxes(type="log", exponentformat="power", nticks=6)
    return figure


def line_places(count: int) -> npt.NDArray[np.int64]:
    """Indices of the values on a line: all of the first, then fewer, as more would not show."""
    if count <= 2 * POINTS:
        return np.arange(count)
    evenly = np.linspace(0, count - 1, POINTS).round().astype(np.int64)
    indices: npt.NDArray[np.int64] = np.unique(np.concatenate([np.arange(POINTS), evenly]))
    return indices


def tail_fit(
    eigenvalues: npt.NDArray[Any],
    *,
    title: str,
    alpha: float,
    x_min: float,
    tail_size: float,
    edge: float,
    threshold: float,
    verdict: str = "",
) -> go.Figure:
    r"""Number of eigenvalues of at least each size, with the fitted power law and the bulk's edge.

    Parameters
    ----------
    eigenvalues
        (index,) squared singular values, descending; NaN and zeros are left out.
    title
        Name of the matrix.
    alpha, x_min, tail_size
        Parameters of the fitted power law; NaN draws none.
    edge, threshold
        Marchenko-Pastur edge, and eigenvalue that pure noise exceeds with small probability.
    verdict
        Verdict on the tail, for the subtitle.
    """
    values = eigenvalues[np.isfinite(eigenvalues) & (eigenvalues > 0)]
    count = len(values)
    ranks = np.unique(np.geomspace(1, max(count, 1), POINTS).round().astype(np.int64))
    figure = go.Figure(
        go.Scatter(
            x=values[ranks[ranks <= count] - 1],
            y=ranks[ranks <= count],
            mode="markers",
            marker={"size": 4, "color": ACCENT},
            name="eigenvalues",
            hovertemplate="%{y} eigenvalues of at least %{x:.3g}<extra></extra>",
        )
    )
    said = "no power law to fit"
    if np.isfinite(alpha) and not (count and np.isfinite(x_min)):
        said = f"α {alpha:.2f}; the eigenvalues are beyond float64"
    elif np.isfinite(alpha):
        ends = np.array([x_min, values[0]])
        figure.add_scatter(
            x=ends,
            y=tail_size * (ends / x_min) ** (1 - alpha),
            mode="lines",
            line={"color": SECOND, "width": 1.6},
            name="power law",
            hoverinfo="skip",
        )
        said = f"α {alpha:.2f} on {int(tail_size)} values"
    if verdict:
        said += f": {verdict}"
    styled(
        figure, title=title, subtitle=said, height=290, showlegend=True,
        legend={"y": 0, "x": 0, "xanchor": "left", "yanchor": "bottom", "orientation": "v",
                "font": {"size": 10}, "bgcolor": "rgba(255,255,255,0.7)"},
    )  # fmt: skip
    for value, dash, name in ((edge, "solid", "bulk edge"), (threshold, "dot", "noise threshold")):
        if np.isfinite(value) and value > 0:
            figure.add_scatter(
                x=[value, value], y=[1, max(count, 1)], mode="lines", name=name,
                line={"color": MUTED, "width": 1.2, "dash": dash}, hoverinfo="skip",
            )  # fmt: skip
    figure.update_xaxes(
        title="eigenvalue", type="log", exponentformat="power", nticks=6, tickangle=0
    )
    figure.update_yaxes(title="how many are as large", type="log", dtick=1)
    return figure


def _normalised(spectrum: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Shares of the ranks and min-max normalised values, thinned; ones if all are equal."""
    values = spectrum[np.isfinite(spectrum)]
    if len(values) < 2:
        return np.empty(0), np.empty(0)
    kept = np.unique(np.linspace(0, len(values) - 1, POINTS).round().astype(np.int64))
    spread = values[0] - values[-1]
    normalised = (values - values[-1]) / spread if spread > 0 else np.ones(len(values))
    return ((kept + 1) / len(values)).round(4), normalised[kept].round(4)

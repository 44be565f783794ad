"""Figures of a report over all matrices: measures, figure 4, tails, and the paper's claim."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import xarray as xr

from spectra.analysis.dynamics import gradient_dynamics
from spectra.analysis.emergence import THRESHOLD, emergence
from spectra.analysis.table import metrics_table
from spectra.figures.emergence import correlation_forest, emergence_scatter
from spectra.figures.measures import layer_role_grid, layer_role_heatmap, measure_lines
from spectra.figures.reduction import shortened
from spectra.figures.spectra import normalised_spectra, tail_fit
from spectra.figures.theme import TEMPLATE
from spectra.matrices import block_labels
from spectra.metrics.goodness import ENOUGH, Verdict
from spectra.metrics.spectrum import squared

Drawn = dict[str, Any]
SHOWN = (
    "stable_rank", "effective_rank", "participation_ratio", "energy_rank_90", "spectral_entropy",
    "rank_one_residual", "frobenius_norm", "alpha", "hill_alpha", "tail_size", "mp_spikes",
    "mp_soft_rank", "optimal_rank",
)  # fmt: skip
DYNAMICS = ("consecutive_cosine", "effective_rank_decay", "update_to_weight")
ONCE = ("saturation_step", "turning", "late_turning")


def bare(figure: go.Figure) -> Drawn:
    """A figure as JSON without its template; the page holds one template for all figures."""
    drawn: Drawn = json.loads(figure.to_json())
    drawn["layout"].pop("template", None)
    return drawn


def common_template() -> Drawn:
    """The template of all figures."""
    drawn: Drawn = json.loads(go.Figure(layout={"template": TEMPLATE}).to_json())
    found: Drawn = drawn["layout"]["template"]
    return found


def measure_figures(table: xr.Dataset | None, dynamics: xr.Dataset | None) -> Drawn:
    """Name, lines over training, and map of the last state of each measure, by kind and measure.

    Parameters
    ----------
    table
        Table of `metrics_table`.
    dynamics
        Dataset of `gradient_dynamics`.
    """
    found: Drawn = {}
    if table is not None:
        for kind in table["kind"].to_numpy().tolist():
            of_kind = table.sel(kind=kind)
            if of_kind["spectral_norm"].notnull().any():
                found[kind] = {name: _both(of_kind[name]) for name in SHOWN}
    if dynamics is not None:
        present = {name: _both(dynamics[name]) for name in DYNAMICS if name in dynamics}
        present |= {name: {"name": _label(dynamics[name]), "map": _map(dynamics[name])}
                    for name in ONCE if name in dynamics}  # fmt: skip
        if present:
            found["gradients over time"] = present
    return found


def run_dynamics(run: xr.DataTree, cosine: xr.DataArray | None) -> xr.Dataset | None:
    """Dynamics of a run; None if it has a single snapshot."""
    if run["spectra"].sizes["step"] < 2:
        return None
    return gradient_dynamics(without_gradients(run) if cosine is None else run, cosine=cosine)


def without_gradients(run: xr.DataTree) -> xr.DataTree:
    """A run without its sketches and raw gradients."""
    return xr.DataTree.from_dict({"spectra": run["spectra"].to_dataset()})


def figure_four(spectra: xr.Dataset, threshold: float = THRESHOLD) -> Drawn | None:
    """Normalised spectra of the last weights, by role; None if the store has no weights."""
    if "weight" not in spectra:
        return None
    last = spectra["weight"].isel(step=-1).compute()
    roles = last["role"].to_numpy().astype(object)
    values, layers = last.to_numpy(), block_labels(last["matrix"].to_numpy().tolist())
    names = list(dict.fromkeys(roles.tolist()))
    return bare(
        normalised_spectra(
            {role: values[roles == role] for role in names},
            {role: [layers[i] for i in np.flatnonzero(roles == role)] for role in names},
            threshold=threshold,
        )
    )


def tail_figures(spectra: xr.Dataset, table: xr.Dataset) -> list[Drawn]:
    """Eigenvalues of every matrix's last weight, with their fits."""
    if "weight" not in spectra:
        return []
    eigenvalues = squared(spectra["weight"].isel(step=-1).to_numpy())
    fits = table.sel(kind="weight").isel(step=-1)
    drawn = []
    for i, name in enumerate(spectra["matrix"].to_numpy().tolist()):
        fit = {
            field: float(fits[variable][i])
            for field, variable in (
                ("alpha", "alpha"), ("x_min", "x_min"), ("tail_size", "tail_size"),
                ("edge", "mp_edge"), ("threshold", "spike_threshold"),
            )
        }  # fmt: skip
        few = fit["tail_size"] < ENOUGH and np.isfinite(fit["alpha"])
        verdict = Verdict.TOO_FEW.value if few else ""
        values = shortened(eigenvalues[i])
        drawn.append(bare(tail_fit(values, title=str(name), verdict=verdict, **fit)))
    return drawn


def claim_figures(run: xr.DataTree, cosine: xr.DataArray | None) -> list[Drawn]:
    """Emergence as two figures; an empty list if the store lacks the data."""
    spectra = run["spectra"].to_dataset()
    if cosine is None or not {"weight", "gradient"} <= set(spectra) or spectra.sizes["step"] < 2:
        return []
    found = emergence(run, cosine=cosine)
    cause, outcome = "turning", "rank_loss"
    whole = found.sel(group="all", cause=cause, outcome=outcome)
    if not np.isfinite(whole["correlation"]):
        return []
    value, low, high = (float(whole[name]) for name in ("correlation", "low", "high"))
    scatter = emergence_scatter(
        found[cause].to_numpy(),
        found[outcome].to_numpy(),
        found["role"].to_numpy().tolist(),
        found["matrix"].to_numpy().tolist(),
        title="Gradients that turn, weights that lose rank",
        subtitle=f"rank correlation {value:+.2f}, interval {low:+.2f} to {high:+.2f}, "
        f"{int(whole['pairs'])} matrices",
        cause_label="turning: mean of 1 - cosine of consecutive gradients",
        outcome_label="effective rank lost since the first snapshot",
    )
    groups = ("all", "within roles")
    stacked = found.sel(group=list(groups)).stack(entry=("cause", "outcome", "group"))
    labels = [f"{c} → {o} ({g})".replace("_", " ") for c, o, g in stacked["entry"].to_numpy()]
    forest = correlation_forest(
        stacked["correlation"].to_numpy(),
        stacked["low"].to_numpy(),
        stacked["high"].to_numpy(),
        labels,
        title="All pairs of cause and outcome",
        subtitle=f"{found.attrs['confidence']:.0%} bootstrap intervals over matrices",
    )
    return [bare(scatter), bare(forest)]


def measured(run: xr.DataTree, rows: npt.NDArray[np.int64]) -> xr.Dataset:
    """Table of measures at some snapshots of a run."""
    return metrics_table(run.isel(step=rows, missing_dims="ignore"))


def _both(values: xr.DataArray) -> Drawn:
    drawn = {"name": _label(values), "map": _map(values.isel(step=-1))}
    if values.sizes["step"] > 1:
        drawn["lines"] = _lines(values)
    return drawn


def _label(values: xr.DataArray) -> str:
    return str(values.attrs.get("long_name", values.name))


def _lines(values: xr.DataArray) -> Drawn:
    ordered = values.transpose("step", "matrix")
    roles = ordered["role"].to_numpy().astype(object)
    data = shortened(ordered.to_numpy())
    by_role = {role: data[:, roles == role] for role in dict.fromkeys(roles.tolist())}
    return bare(measure_lines(by_role, ordered["step"].to_numpy(), title=_label(values)))


def _map(values: xr.DataArray) -> Drawn:
    layer_of = block_labels(values["matrix"].to_numpy().tolist())
    role_of = values["role"].to_numpy().tolist()
    grid, layers, roles = layer_role_grid(shortened(values.to_numpy()), layer_of, role_of)
    subtitle = "at the last snapshot" if "step" in values.coords else "over the run"
    return bare(layer_role_heatmap(grid, layers, roles, title=_label(values), subtitle=subtitle))

"""Data that the page's script draws from.

If all snapshots would not fit into `PAYLOAD_BYTES`, it holds fewer, evenly spaced, and the page
says so.
"""

from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from spectra import quantities
from spectra.analysis.similarity import cosine_similarity
from spectra.analysis.subspaces import subspace_overlap
from spectra.analysis.tails import kinds_of
from spectra.figures.dynamics import (
    FIRST_VALUES,
    cosine_heatmap,
    overlap_heatmap,
    spectrum_heatmap,
)
from spectra.figures.training import loss_curve
from spectra.matrices import block_labels, usual_choice
from spectra.report.allocation import compression
from spectra.report.encoding import encode_cosines, encode_logarithms
from spectra.report.overview import (
    bare,
    claim_figures,
    common_template,
    figure_four,
    measure_figures,
    measured,
    run_dynamics,
    tail_figures,
)
from spectra_data.errors import InputError

PAYLOAD_BYTES = 2_100_000
"""Bytes of array data, before base64 adds a third. Of the page's 10 MB, plotly's script takes about
4.9 MB, the figures of measures and tails up to 1.7 MB, and the path of compression 0.3 MB."""
LOSS_POINTS = 4_000
MEASURED = 25
"""Most snapshots at which measures are drawn: fits of all spectra of a large model take minutes."""

Payload = dict[str, Any]


def payload(run: xr.DataTree) -> Payload:
    """All data that the page's script draws from."""
    spectra = run["spectra"].to_dataset()
    run = with_literal_names(run)
    kinds = [kind for kind in quantities.shown() if kind in spectra]
    cosine, notes = _cosines(run)
    has_overlap = "subspaces" in run.children
    squares = (cosine is not None) + has_overlap
    shown = _thinned(spectra.sizes["step"], _bytes_per_matrix(spectra, kinds, squares))
    steps = spectra["step"].to_numpy()[shown]
    arrays: dict[str, Any] = {}
    for kind in kinds:
        values = spectra[kind].isel(step=shown, index=slice(FIRST_VALUES)).to_numpy()
        arrays[kind] = [encode_logarithms(of_one) for of_one in values.swapaxes(0, 1)]
    if cosine is not None:
        of_shown = cosine.isel(step=shown, step_=shown).transpose("matrix", ...)
        arrays["cosine"] = [encode_cosines(of_one) for of_one in of_shown.to_numpy()]
    chance = None
    if has_overlap:
        overlap = subspace_overlap(run).isel(step=shown, step_=shown).compute()
        arrays["overlap"] = [encode_cosines(of_one) for of_one in overlap.overlap.to_numpy()]
        chance = overlap.chance.to_numpy().tolist()
    if left_out := spectra.sizes["step"] - len(shown):
        notes.append(
            f"To keep this file small, it shows {len(shown)} snapshots, evenly spaced; {left_out} "
            "more are in the store."
        )
    table = None
    if kinds_of(run):
        few = shown[_evenly(len(shown), MEASURED)]
        table = measured(run, few)
        if len(few) < len(shown):
            notes.append(f"Measures are drawn at {len(few)} of the snapshots, evenly spaced.")
    ranks, reasons = compression(run)
    notes += reasons
    if "weight_error" in spectra:
        notes.append(
            "The singular values are approximate: leading values and quantiles of the spectral "
            "density, with standard errors in the store."
        )
    return {
        "compression": ranks,
        "matrices": [
            {
                "name": str(name),
                "layer": layer,
                "role": str(role),
                "shape": [int(rows), int(cols)],
            }
            for layer, name, role, rows, cols in zip(
                block_labels(spectra["matrix"].to_numpy().tolist()),
                *(spectra[v].to_numpy() for v in ("matrix", "role", "rows", "cols")),
                strict=True,
            )
        ],
        "chosen": default_matrices(spectra),
        "steps": steps.tolist(),
        "left_out": left_out,
        "notes": notes,
        "arrays": arrays,
        "templates": _templates(steps, kinds, cosine, chance),
        "chance": chance,
        "tails": [] if table is None else tail_figures(run["spectra"].to_dataset(), table),
        "template": common_template(),
        "loss": _loss_figure(run),
        "measures": measure_figures(table, run_dynamics(run, cosine)),
        "figure4": figure_four(run["spectra"].to_dataset()),
        "claim": claim_figures(run, cosine),
    }


def with_literal_names(run: xr.DataTree) -> xr.DataTree:
    """A run whose names and roles are escaped, because figures treat texts as markup."""
    groups = {}
    for place, node in run.subtree_with_keys:
        dataset = node.to_dataset(inherit=False)
        for name in {"matrix", "role"} & set(dataset.coords):
            texts = np.array(
                [escape(str(t), quote=False) for t in dataset[name].to_numpy()], object
            )
            dataset = dataset.assign_coords({name: dataset[name].copy(data=texts)})
        groups[place] = dataset
    literal = xr.DataTree.from_dict(groups)
    literal.encoding = dict(run.encoding)
    return literal


def _cosines(run: xr.DataTree) -> tuple[xr.DataArray | None, list[str]]:
    """Cosines, computed once, or None; and notes on why they are missing."""
    if not {"sketches", "gradients"} & set(run.children):
        return None, []
    try:
        return cosine_similarity(run).compute(), []
    except InputError as error:
        return None, [f"Cosines of the gradients are left out: {error}."]


def default_matrices(spectra: xr.Dataset) -> list[str]:
    """The paper's matrices: q and k of the first layer, down and up of a middle layer.

    If there are no such roles, the first four matrices.
    """
    names = spectra["matrix"].to_numpy().tolist()
    return usual_choice(names, spectra["role"].to_numpy().tolist()) or names[:4]


def _bytes_per_matrix(spectra: xr.Dataset, kinds: list[str], squares: int) -> tuple[int, int, int]:
    """Matrices, and the linear and quadratic coefficients of their bytes in the snapshots."""
    values = min(FIRST_VALUES, spectra.sizes.get("index", 0))
    return spectra.sizes["matrix"], 2 * values * len(kinds), 2 * squares


def _thinned(count: int, coefficients: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    """Rows that fit into the payload: all, or evenly spaced ones with the first and the last."""
    matrices, linear, quadratic = coefficients
    kept = count
    while kept > 2 and matrices * (linear * kept + quadratic * kept**2) > PAYLOAD_BYTES:
        kept -= 1
    return _evenly(count, kept)


def _evenly(count: int, kept: int) -> npt.NDArray[np.int64]:
    """At most `kept` evenly spaced numbers under `count`, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(kept, count)).round().astype(np.int64))


def _templates(
    steps: npt.NDArray[np.int64],
    kinds: list[str],
    cosine: xr.DataArray | None,
    chance: list[float] | None,
) -> Payload:
    """Each figure once, without data; the page's script fills in the data of a matrix."""
    empty = np.zeros((len(steps), 1))
    figures = {kind: spectrum_heatmap(empty, steps, title="") for kind in kinds}
    if cosine is not None:
        square = np.zeros((len(steps), len(steps)))
        error = cosine.attrs.get("standard_error")
        figures["cosine"] = cosine_heatmap(square, steps, title="", standard_error=error)
    if chance is not None:
        square = np.zeros((len(steps), len(steps)))
        figures["overlap"] = overlap_heatmap(square, steps, title="", chance=0.0)
    templates = {name: bare(figure) for name, figure in figures.items()}
    for template in templates.values():
        del template["data"][0]["z"]
    return templates


def _loss_figure(run: xr.DataTree) -> Payload | None:
    if "train" not in run.children or not np.isfinite(run["train"]["loss"]).any():
        return None
    train = run["train"].to_dataset().compute()
    rows = _evenly(train.sizes["train_step"], LOSS_POINTS)
    evaluated = np.flatnonzero(np.isfinite(train["validation_loss"].to_numpy()))
    train = train.isel(train_step=np.union1d(rows, evaluated))
    figure = loss_curve(
        train["train_step"].to_numpy(),
        train["loss"].to_numpy(),
        train["validation_loss"].to_numpy(),
    )
    return bare(figure)

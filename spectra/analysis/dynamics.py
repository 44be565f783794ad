"""How gradients, updates and weights move over training, matrix by matrix."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from spectra.analysis.similarity import Method, cosine_similarity
from spectra.metrics import dynamics, ranks
from spectra.store.reader import takes_store
from spectra_data.errors import InputError

_OVER_STEPS = {
    "consecutive_cosine": "cosine of the gradient with that of the snapshot before",
    "rank_one_residual": "share of the gradient's energy outside of its leading direction",
    "effective_rank": "effective rank of the gradient",
    "effective_rank_decay": "effective rank of the gradient over that of the first snapshot",
    "update_to_weight": "Frobenius norm of the update over that of the weight",
}


@takes_store
def gradient_dynamics(
    run: xr.DataTree,
    *,
    level: float = dynamics.SATURATED,
    method: Method = "auto",
    cosine: xr.DataArray | None = None,
) -> xr.Dataset:
    r"""All measures of how a run's gradients change, as one dataset.

    Parameters
    ----------
    run
        A run, opened or by its address; measures that need something unrecorded are left out, and
        the attribute ``left_out`` says why.
    level
        Cosine of consecutive gradients above which a matrix counts as saturated.
    method
        Method of `spectra.cosine_similarity`.
    cosine
        Cosines computed before, to use instead; they cover at least these matrices and steps.

    Returns
    -------
    Over (step, matrix): `consecutive_cosine`, `rank_one_residual`, `effective_rank`,
    `effective_rank_decay` and `update_to_weight`. Over (matrix): `saturation_step`, the first step
    after which the consecutive cosine stays above `level` (NaN if it does not), `turning`, the
    mean of 1 - consecutive cosine weighted by steps, and `late_turning`, the same over the second
    half of the steps. Formulas are in docs/measures.md.

    Raises
    ------
    InputError
        When the run has fewer than two snapshots.
    """
    spectra = run["spectra"].to_dataset()
    steps = spectra["step"].to_numpy()
    if len(steps) < 2:
        raise InputError("dynamics need at least two snapshots")
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    if cosine is not None or {"sketches", "gradients"} & set(run.children):
        cosines = cosine_similarity(run, method) if cosine is None else cosine
        cosines = cosines.compute().sel(
            matrix=spectra["matrix"].to_numpy(), step=steps, step_=steps
        )
        found |= _of_cosines(cosines, steps, level)
    else:
        left_out["cosines"] = "neither sketches nor raw gradients were recorded"
    if "gradient" in spectra:
        gradient = spectra["gradient"].compute()
        effective = _of_spectra(ranks.effective_rank, gradient)
        found["rank_one_residual"] = _of_spectra(ranks.rank_one_residual, gradient).variable
        found["effective_rank"] = effective.variable
        decay = xr.apply_ufunc(
            dynamics.over_the_first, effective, input_core_dims=[["step"]],
            output_core_dims=[["step"]],
        )  # fmt: skip
        found["effective_rank_decay"] = decay.transpose("step", "matrix").variable
    else:
        left_out["ranks"] = "spectra of the gradient were not recorded"
    if {"update", "weight"} <= set(spectra.data_vars):
        update, weight = (
            _of_spectra(ranks.frobenius_norm, spectra[kind].compute())
            for kind in ("update", "weight")
        )
        found["update_to_weight"] = (update / weight).variable
    else:
        left_out["update_to_weight"] = "spectra of update and weight were not both recorded"
    dataset = xr.Dataset(found, coords=spectra.drop_dims("index", errors="ignore").coords)
    for name, text in _OVER_STEPS.items():
        if name in dataset:
            dataset[name].attrs = {"long_name": text, "units": "1"}
    return dataset.assign_attrs(level=level, left_out=left_out)


def _of_cosines(cosine: xr.DataArray, steps: Any, level: float) -> dict[str, Any]:
    values = cosine.transpose("matrix", "step", "step_").to_numpy()
    position = dynamics.saturation(values, level)
    saturated = np.isfinite(position)
    step = np.where(saturated, steps[np.where(saturated, position, 0).astype(np.intp)], np.nan)
    pairs = dynamics.consecutive(values)
    first = np.full((len(values), 1), np.nan)
    middle = (steps[0] + steps[-1]) / 2
    described = {
        "saturation_step": (step, f"first step after which gradients stay within {level:g}", "1"),
        "turning": (dynamics.turning(values, steps), "mean of 1 - consecutive cosine", "1"),
        "late_turning": (
            dynamics.turning(values, steps, middle),
            "mean of 1 - consecutive cosine over the second half",
            "1",
        ),
    }
    return {
        "consecutive_cosine": (("step", "matrix"), np.concatenate([first, pairs], axis=1).T),
        **{
            name: ("matrix", value, {"long_name": text, "units": units})
            for name, (value, text, units) in described.items()
        },
    }


def _of_spectra(measure: Callable[[Any], Any], spectra: xr.DataArray) -> xr.DataArray:
    """A measure of every spectrum: (step, matrix)."""
    found: xr.DataArray = xr.apply_ufunc(measure, spectra, input_core_dims=[["index"]])
    return found.transpose("step", "matrix")

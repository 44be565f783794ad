"""The paper's claim as numbers: do gradients that keep turning make weights low-rank?"""

from typing import Any

import numpy as np
import xarray as xr

from spectra.analysis.dynamics import gradient_dynamics
from spectra.analysis.similarity import Method
from spectra.metrics import dynamics, ranks
from spectra.metrics.correlation import rank_correlation, ranked_within
from spectra.store.reader import takes_store
from spectra_data.errors import InputError

CAUSES = {
    "turning": "how much gradients turn between snapshots, over all of training",
    "late_turning": "how much they turn in the second half",
    "gradient_low_rank": "1 - effective rank of the gradient over full rank, mean over the steps",
}
OUTCOMES = {
    "low_rank": "1 - effective rank of the final weight over full rank",
    "reduction": "share of normalised singular values of the final weight under the threshold",
    "rank_loss": "1 - effective rank of the final weight over that of the first",
}
THRESHOLD = 0.175
"""WeLore's threshold on normalised singular values for 50 % on LLaMA-2 7B."""


@takes_store
def emergence(
    run: xr.DataTree,
    *,
    threshold: float = THRESHOLD,
    method: Method = "auto",
    replicas: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    cosine: xr.DataArray | None = None,
) -> xr.Dataset:
    """Relate, over matrices, how gradients behaved and how low-rank the weights became.

    WeLore's claim: matrices whose gradients keep turning become low-rank, those whose gradients
    settle early stay full-rank. If so, the correlations here are positive.

    Parameters
    ----------
    run
        A run, opened or by its address, with spectra of gradient and weight, and sketches or raw
        gradients.
    threshold
        Threshold on min-max normalised singular values, for `reduction`.
    method, cosine
        As for `spectra.analysis.dynamics.gradient_dynamics`.
    replicas, confidence, seed
        Replicas, level of the interval, and seed of the bootstrap over matrices.

    Returns
    -------
    Over (group, cause, outcome): Spearman's rank `correlation`, the bounds `low` and `high` of its
    bootstrap interval, and the number of `pairs`. Groups are ``all``, ``within roles`` (values
    ranked within their role first, so that differences between roles do not count) and each role;
    NaN if a group has fewer than 5 matrices. The values themselves are over (matrix).

    Raises
    ------
    InputError
        When spectra of weight or gradient are missing, or both sketches and raw gradients.

    Notes
    -----
    Matrices of one layer or role are not independent, and a run is one draw: the interval says how
    much the correlation depends on single matrices, not how another run would turn out. `low_rank`
    does not compare matrices of different shapes, even at the start (a square random matrix has a
    lower effective rank than a long one); `rank_loss` does, since it compares each with itself.
    """
    spectra = run["spectra"].to_dataset()
    for kind in ("weight", "gradient"):
        if kind not in spectra:
            raise InputError(f"this run holds no spectra of the {kind}: record them")
    moves = gradient_dynamics(run, method=method, cosine=cosine)
    if "turning" not in moves:
        raise InputError("this run holds neither sketches nor raw gradients: record sketches")
    full = np.minimum(spectra["rows"].to_numpy(), spectra["cols"].to_numpy())
    weight = spectra["weight"].isel(step=[0, -1]).compute().to_numpy()
    first, last = ranks.effective_rank(weight)
    values = {
        "turning": moves["turning"].to_numpy(),
        "late_turning": moves["late_turning"].to_numpy(),
        "gradient_low_rank": 1 - _mean_rank(moves["effective_rank"]) / full,
        "low_rank": 1 - last / full,
        "reduction": ranks.threshold_reduction(weight[1], full, threshold),
        "rank_loss": 1 - last / first,
    }
    roles = spectra["role"].to_numpy().astype(object)
    groups = ["all", "within roles", *dict.fromkeys(roles.tolist())]
    shape = (len(groups), len(CAUSES), len(OUTCOMES))
    found = {name: np.full(shape, np.nan) for name in ("correlation", "low", "high", "pairs")}
    for index in np.ndindex(shape):
        group = groups[index[0]]
        x, y = values[list(CAUSES)[index[1]]], values[list(OUTCOMES)[index[2]]]
        if group == "within roles":
            x, y = (ranked_within(v, roles) for v in (x, y))
        elif group != "all":
            x, y = x[roles == group], y[roles == group]
        result = rank_correlation(x, y, replicas=replicas, confidence=confidence, seed=seed)
        for name, value in zip(found, result, strict=True):
            found[name][index] = value
    described = CAUSES | OUTCOMES
    return xr.Dataset(
        {
            **{name: (("group", "cause", "outcome"), value) for name, value in found.items()},
            **{
                name: ("matrix", value, {"long_name": described[name], "units": "1"})
                for name, value in values.items()
            },
        },
        coords={
            "group": groups,
            "cause": list(CAUSES),
            "outcome": list(OUTCOMES),
            **{n: c for n, c in spectra.coords.items() if c.dims == ("matrix",)},
        },
        attrs={
            "threshold": threshold,
            "confidence": confidence,
            "steps": [int(spectra["step"][0]), int(spectra["step"][-1])],
        },
    )


def _mean_rank(values: xr.DataArray) -> Any:
    mean = xr.apply_ufunc(
        dynamics.mean_over_steps, values, values["step"], input_core_dims=[["step"], ["step"]]
    )
    return mean.to_numpy()

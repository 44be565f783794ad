"""The paper's claim as numbers: do gradients that keep turning make weights low-rank?"""

from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from spectra.analysis.dynamics import gradient_dynamics
from spectra.analysis.similarity import Method
from spectra.metrics import ranks
from spectra.metrics.correlation import rank_correlation
from spectra.metrics.spectrum import relative
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
"""On normalised singular values, WeLore's for 50 % on LLaMA-2 7B."""


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
    """Relate, over matrices, how gradients behaved to how low-rank the weights became.

    WeLore's claim: matrices whose gradients keep turning become low-rank, those whose gradients
    settle early stay full-rank. If so, the correlations here are positive.

    Parameters
    ----------
    run
        An opened run with spectra of gradient and weight, and sketches or raw gradients.
    threshold
        On min-max normalised singular values, for `reduction`.
    method, cosine
        As in `spectra.analysis.dynamics.gradient_dynamics`.
    replicas, confidence, seed
        Of the bootstrap over matrices.

    Returns
    -------
    Over (group, cause, outcome): Spearman's rank `correlation`, the bounds `low` and `high` of its
    bootstrap interval, and how many `pairs` it is from. Groups are ``all``, ``within roles``
    (values ranked inside their role first, so that differences between roles do not count) and each
    role; NaN where a group has fewer than 5 matrices. The values themselves are over (matrix).

    Raises
    ------
    InputError
        When something that it needs was not recorded.

    Notes
    -----
    Matrices of one layer or role are not independent, and a run is one draw: the interval says how
    far the correlation hangs on single matrices, not how another run would turn out. `low_rank` of
    matrices of different shapes is not on one scale even at the start (a square random matrix has
    a lower effective rank than a long one); `rank_loss` is, since it compares each with itself.
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
        "gradient_low_rank": 1 - _mean_over_steps(moves["effective_rank"]) / full,
        "low_rank": 1 - last / full,
        "reduction": _reduction(weight[1], full, threshold),
        "rank_loss": 1 - last / first,
    }
    roles = spectra["role"].to_numpy().astype(object)
    groups = ["all", "within roles", *dict.fromkeys(roles.tolist())]
    shape = (len(groups), len(CAUSES), len(OUTCOMES))
    found = {name: np.full(shape, np.nan) for name in ("correlation", "low", "high", "pairs")}
    for place in np.ndindex(shape):
        group = groups[place[0]]
        x, y = values[list(CAUSES)[place[1]]], values[list(OUTCOMES)[place[2]]]
        if group == "within roles":
            x, y = (_ranked_within(v, roles) for v in (x, y))
        elif group != "all":
            x, y = x[roles == group], y[roles == group]
        result = rank_correlation(x, y, replicas=replicas, confidence=confidence, seed=seed)
        for name, value in zip(found, result, strict=True):
            found[name][place] = value
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


def _mean_over_steps(values: xr.DataArray) -> Any:
    """(step, matrix) to (matrix,), each snapshot weighted by the steps around it."""
    ordered = values.transpose("step", "matrix").to_numpy()
    weights = np.gradient(values["step"].to_numpy().astype(np.float64))[:, None]
    there = np.isfinite(ordered)
    total = np.where(there, weights, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, weights * ordered, 0.0).sum(axis=0) / total


def _reduction(spectra: Any, full: Any, threshold: float) -> Any:
    """Share of min-max normalised singular values under the threshold; 0 where all are equal."""
    r = relative(spectra)
    index = np.arange(r.shape[-1])
    there = index < full[:, None]
    least = np.where(there, r, np.inf).min(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        normalised = np.where(least < r[..., :1], (r - least) / (r[..., :1] - least), 1.0)
        removed = ((normalised < threshold) & there).sum(axis=-1) / full
    return np.where(np.isnan(r[..., 0]), np.nan, removed)


def _ranked_within(values: Any, roles: Any) -> Any:
    """Ranks inside each role, in (0, 1)."""
    ranked = np.full(len(values), np.nan)
    for role in set(roles.tolist()):
        mine = (roles == role) & np.isfinite(values)
        count = mine.sum()
        if count > 1:
            ranked[mine] = (rankdata(values[mine]) - 0.5) / count
    return ranked

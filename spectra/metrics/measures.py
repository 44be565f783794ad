"""Every measure of a spectrum, by name: the columns of `spectra metrics`.

The formulas stand in the modules that define the functions; docs/measures.md lists them all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spectra.machine.cores import in_threads
from spectra.metrics import bulk, goodness, ranks, tails
from spectra.metrics.spectrum import Floats, Side, as_floats, eigenvalues, largest, squared

Table = dict[str, npt.NDArray[Any]]
Progress = Callable[[int, int], None]
BLOCK = 256
"""Spectra that one core works on at a time; bounds memory."""
TESTED_BLOCK = 16
"""The same with a bootstrap, which is slow: small, so that progress shows."""


@dataclass(frozen=True)
class Measure:
    """Description of a column."""

    long_name: str
    units: str = "1"
    grows_with_scale: bool = False
    """Whether twice the matrix has another value; other measures do not depend on scale."""


_RANKS: dict[str, tuple[Measure, Callable[[Any, Side, Side], Floats]]] = {
    "spectral_norm": (
        Measure("largest singular value", "weight", True),
        lambda s, m, n: ranks.spectral_norm(s),
    ),
    "frobenius_norm": (
        Measure("root of the sum of squared singular values", "weight", True),
        lambda s, m, n: ranks.frobenius_norm(s),
    ),
    "nuclear_norm": (
        Measure("sum of the singular values", "weight", True),
        lambda s, m, n: ranks.nuclear_norm(s),
    ),
    "stable_rank": (Measure("stable rank"), lambda s, m, n: ranks.stable_rank(s)),
    "effective_rank": (Measure("effective rank"), lambda s, m, n: ranks.effective_rank(s)),
    "participation_ratio": (
        Measure("participation ratio of the eigenvalues"),
        lambda s, m, n: ranks.participation_ratio(s),
    ),
    "energy_rank_90": (
        Measure("rank that holds 90 % of the energy"),
        lambda s, m, n: ranks.energy_rank(s, 0.9),
    ),
    "energy_rank_99": (
        Measure("rank that holds 99 % of the energy"),
        lambda s, m, n: ranks.energy_rank(s, 0.99),
    ),
    "numerical_rank": (Measure("numerical rank, in float32"), ranks.numerical_rank),
    "spectral_entropy": (
        Measure("entropy of the eigenvalues over its greatest"),
        lambda s, m, n: ranks.spectral_entropy(s),
    ),
    "rank_one_residual": (
        Measure("share of the energy outside of the leading direction"),
        lambda s, m, n: ranks.rank_one_residual(s),
    ),
}
_TAILS = {
    "alpha": Measure("exponent of the power law fitted to the eigenvalues"),
    "alpha_sigma": Measure("standard error of alpha for the x_min found"),
    "x_min": Measure("least eigenvalue of the fitted tail", "weight^2", True),
    "ks_distance": Measure("Kolmogorov-Smirnov distance of the tail from the fit"),
    "tail_size": Measure("eigenvalues in the fitted tail"),
    "hill_alpha": Measure("Hill's exponent of the larger half of the eigenvalues"),
    "alpha_weighted": Measure("alpha times log10 of the largest eigenvalue", "1", True),
    "log_alpha_norm": Measure("log10 of the sum of eigenvalues to the power alpha", "1", True),
}
RATIOS = {
    "exponential": goodness.against_exponential,
    "lognormal": goodness.against_lognormal,
    "truncated": goodness.against_truncated,
}
_COMPARISONS = {
    f"{name}_{field}": Measure(f"log-likelihood ratio of the power law over the {law}, {described}")
    for name, law in (
        ("exponential", "exponential"),
        ("lognormal", "lognormal"),
        ("truncated", "power law with a cut-off"),
    )
    for field, described in (("ratio", "normalised"), ("p", "its p-value"))
}
_BULK: dict[str, tuple[Measure, Callable[[Any, Side, Side, float, int], Floats]]] = {
    "noise_scale": (
        Measure("standard deviation of the entries' noise, from the median", "weight", True),
        lambda s, m, n, level, seed: bulk.noise_scale(s, m, n),
    ),
    "mp_edge": (
        Measure("upper edge of the Marchenko-Pastur bulk", "weight^2", True),
        lambda s, m, n, level, seed: bulk.mp_edge(s, m, n),
    ),
    "spike_threshold": (
        Measure("eigenvalue that the largest of pure noise hardly ever exceeds", "weight^2", True),
        lambda s, m, n, level, seed: bulk.spike_threshold(s, m, n, level),
    ),
    "mp_spikes": (
        Measure("eigenvalues above the spike threshold"),
        lambda s, m, n, level, seed: bulk.mp_spikes(s, m, n, level),
    ),
    "mp_soft_rank": (
        Measure("bulk edge over the largest eigenvalue"),
        lambda s, m, n, level, seed: bulk.mp_soft_rank(s, m, n),
    ),
    "optimal_rank": (
        Measure("Gavish and Donoho's rank"),
        lambda s, m, n, level, seed: bulk.optimal_rank(s, m, n),
    ),
    "random_distance": (
        Measure("Jensen-Shannon distance from the eigenvalues of a random matrix"),
        lambda s, m, n, level, seed: bulk.random_distance(s, m, n, seed),
    ),
}
_TESTS = {
    "alpha_error": Measure("standard error of alpha, with the search for x_min"),
    "p_value": Measure("bootstrap p-value of the power law"),
    "verdict": Measure("what the tail is", ""),
}
MEASURES: dict[str, Measure] = {
    **{name: measure for name, (measure, _) in _RANKS.items()},
    **_TAILS,
    **_COMPARISONS,
    **{name: measure for name, (measure, _) in _BULK.items()},
    **_TESTS,
}
"""Every column with its description, in the order of the table."""


def measures(
    spectra: Any,
    rows: Side,
    cols: Side,
    *,
    replicas: int = 0,
    seed: int = 0,
    level: float = bulk.LEVEL,
    progress: Progress | None = None,
) -> Table:
    """Every measure of every spectrum.

    Parameters
    ----------
    spectra
        (..., index), descending, padded with NaN.
    rows, cols
        Sides of the matrices, in the shape of the leading axes or to broadcast against it.
    replicas
        Replicas of the bootstrap; 0 leaves out `alpha_error`, `p_value` and `verdict`.
    seed
        Seed of the bootstrap and of the random matrix.
    level
        Share of pure-noise matrices that may show a spike.
    progress
        Called with the number of spectra done and the number of all.

    Returns
    -------
    By the names of `MEASURES`: arrays without the last axis.
    """
    s = as_floats(spectra)
    shape = s.shape[:-1]
    flat = s.reshape(-1, s.shape[-1])
    m = np.broadcast_to(rows, shape).reshape(-1)
    n = np.broadcast_to(cols, shape).reshape(-1)

    size = TESTED_BLOCK if replicas else BLOCK

    def part(start: int) -> Table:
        block = slice(start, start + size)
        return _measured(flat[block], m[block], n[block], replicas, seed, level)

    starts = range(0, max(len(flat), 1), size)
    parts = []
    for start, table in zip(starts, in_threads(part, starts), strict=True):
        parts.append(table)
        if progress:
            progress(min(start + size, len(flat)), len(flat))
    return {
        name: np.concatenate([table[name] for table in parts]).reshape(shape) for name in parts[0]
    }


def _measured(
    s: Floats, m: npt.NDArray[Any], n: npt.NDArray[Any], replicas: int, seed: int, level: float
) -> Table:
    table: Table = {name: function(s, m, n) for name, (_, function) in _RANKS.items()}
    table |= tail_measures(s, m, n, replicas=replicas, seed=seed)
    table["hill_alpha"] = tails.hill_alpha(eigenvalues(s, m, n))
    table["alpha_weighted"] = tails.alpha_weighted(table["alpha"], largest(s))
    table["log_alpha_norm"] = tails.log_alpha_norm(table["alpha"], s)
    table |= {name: function(s, m, n, level, seed) for name, (_, function) in _BULK.items()}
    return {name: table[name] for name in MEASURES if name in table}


def tail_measures(
    spectra: Any,
    rows: Side,
    cols: Side,
    *,
    ks: tails.Convention = "left",
    min_tail: int = tails.MIN_TAIL,
    replicas: int = 0,
    seed: int = 0,
) -> Table:
    """Power law in the eigenvalues of each spectrum, and the evidence against it.

    Parameters
    ----------
    spectra
        Singular values (..., index), descending, padded with NaN.
    rows, cols
        Sides of the matrices, broadcast against the other axes.
    ks, min_tail
        As for `spectra.metrics.tails.power_law`.
    replicas, seed
        Replicas and seed of `spectra.metrics.goodness.bootstrap`; 0 replicas leave the test out.

    Returns
    -------
    By the names of `MEASURES`: arrays without the last axis.
    """
    values = eigenvalues(spectra, rows, cols)
    fit = tails.power_law(values, ks=ks, min_tail=min_tail)
    ratios = {name: against(values, fit) for name, against in RATIOS.items()}
    top = largest(spectra)
    table: Table = fit._asdict() | {"x_min": squared(np.sqrt(fit.x_min) * top)}
    table["tail_size"] = np.where(np.isnan(top), np.nan, fit.tail_size)
    for name, ratio in ratios.items():
        table |= {f"{name}_ratio": ratio.normalised, f"{name}_p": ratio.p_value}
    if replicas:
        test = goodness.bootstrap(
            values, fit, replicas=replicas, seed=seed, ks=ks, min_tail=min_tail
        )
        table |= {"alpha_error": test.alpha_error, "p_value": test.p_value}
        table["verdict"] = goodness.verdicts(fit, test.p_value, ratios)
    return table

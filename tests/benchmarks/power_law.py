"""Fitting power laws: milliseconds, and whether the x_min is that of a full search.

`full search` is the plain vectorised search over every candidate, in float64 as ours; it is left
out at 100 000 values, where it takes half a minute. The powerlaw package is given a range for α,
since its own cap of 3 changes x_min; at 100 000 values it takes minutes.
"""

from collections.abc import Callable

import numpy as np
import powerlaw

from spectra.metrics.tails import power_law
from tests.benchmarks.timing import median_seconds, seconds_once

SIZES = (576, 4096, 20_000, 100_000)
SLOWEST_FULL = 20_000
WIDE = {"alpha": [1.0001, 1000.0]}


def run() -> list[dict[str, object]]:
    """Fit samples with a Pareto tail on a lognormal body, and lognormal ones."""
    rows = []
    for size in SIZES:
        draw = np.random.default_rng(size)
        tail = 3 * (draw.pareto(1.5, size // 5) + 1)
        body = np.exp(draw.normal(0, 0.5, size - len(tail)))
        samples = {"pareto tail": np.concatenate([body, tail])}
        if size < 100_000:
            samples["lognormal"] = np.exp(draw.normal(0, 1, size))
        rows += [_compared(name, x) for name, x in samples.items()]
    return rows


def _compared(name: str, x: np.ndarray) -> dict[str, object]:
    fit = power_law(x)
    ours = median_seconds(lambda: power_law(x))
    row: dict[str, object] = {"sample": name, "values": len(x), "tail": int(fit.tail_size)}
    row["ours ms"] = ours * 1e3
    peers: dict[str, Callable[[], float]] = {
        "full search": lambda: full_search(x) if len(x) <= SLOWEST_FULL else np.nan,
        "powerlaw": lambda: powerlaw.Fit(x, parameter_ranges=WIDE, verbose=False).xmin,
    }
    for peer, search in peers.items():
        found: list[float] = []
        seconds = seconds_once(lambda search=search, found=found: found.append(search()))
        ran = not np.isnan(found[0])
        row[f"{peer} ms"] = seconds * 1e3 if ran else np.nan
        row[f"{peer}/ours"] = seconds / ours if ran else np.nan
        row[f"x_min of {peer}"] = ("same" if found[0] == fit.x_min else "other") if ran else ""
    return row


def full_search(x: np.ndarray) -> float:
    """The least distance over all candidates, a vector for each."""
    ordered = np.sort(x)
    logs = np.log(ordered)
    best, chosen = np.inf, np.nan
    for first in range(len(x) - 2):
        n = len(x) - first
        u = logs[first:] - logs[first]
        distance = np.abs(1 - np.exp(-n / u.sum() * u) - np.arange(n) / n).max()
        if distance < best:
            best, chosen = distance, ordered[first]
    return chosen

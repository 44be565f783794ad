"""Rank maps of 224 matrices with LLaMA-7B shapes: seconds, what is stored, and what is lost."""

import numpy as np

from spectra.allocation.allocate import allocate
from spectra.allocation.candidates import Candidate, Candidates
from spectra.allocation.methods.registry import offered
from spectra.allocation.path import compression_path
from spectra.matrices import Matrix
from tests.benchmarks.timing import seconds_once

METHODS = offered("outliers")
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
SIDES = {"gate": (11008, 4096), "up": (11008, 4096), "down": (4096, 11008)}
LAYERS = 32


def run() -> list[dict[str, object]]:
    """Every method at a budget of 0.6, then the path."""
    given = _candidates()
    rows = []
    for method in METHODS:
        options = (
            {"outliers": {i: 0.01 * (i % 7) for i in range(LAYERS)}} if method == "owl" else {}
        )
        made = []
        seconds = seconds_once(
            lambda m=method, o=options, made=made: made.append(
                allocate(given, budget=0.6, method=m, **o)
            )
        )
        rank_map = made[0]
        lost = sum(module.relative_error for module in rank_map.modules)
        rows.append(
            {
                "what": method,
                "seconds": seconds,
                "ERR": rank_map.err,
                "budget": rank_map.budget,
                "summed error": lost,
                "lower bound": rank_map.options.get("lower_bound", np.nan),
            }
        )
    total = sum(float(row["seconds"]) for row in rows)
    empty = dict.fromkeys(("ERR", "budget", "summed error", "lower bound"), np.nan)
    rows.append({"what": "all methods", "seconds": total} | empty)
    seconds = seconds_once(lambda: compression_path(given))
    rows.append({"what": "path, 200 points", "seconds": seconds} | empty)
    return rows


def _candidates() -> Candidates:
    draw = np.random.default_rng(0)
    each = []
    for layer in range(LAYERS):
        for place, role in enumerate(ROLES):
            rows, cols = SIDES.get(role, (4096, 4096))
            tail = np.arange(1, 4097) ** -draw.uniform(0.3, 1.0)
            bulk = np.linspace(1, 0.05, 4096) * draw.uniform(0.1, 0.5)
            matrix = Matrix(f"model.layers.{layer}.{place}.{role}_proj", layer, role, rows, cols)
            each.append(Candidate(matrix, tail + bulk))
    return Candidates(tuple(each), {"name": "made", "revision": None, "sha256": None})

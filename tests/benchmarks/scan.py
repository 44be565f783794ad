"""Scanning LLaMA-7B shapes: seconds a matrix, the reference's way and ours, and a whole checkpoint.

The reference calls `torch.svd` in float32 on every matrix, one after the other, on all cores; the
scan decomposes one matrix a core. `error` is our largest relative error among singular values above
1 % of the largest, against float64. The last row is `spectra scan` of a checkpoint with two layers,
or of the one that SPECTRA_BENCH_CHECKPOINT names (`python -m tests.llama_shaped` writes one of any
depth); its reference is what its matrices take by the rows above.
"""

import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.linalg import singular_values
from spectra.machine.memory import peak_memory_bytes
from spectra.scanning.scan import run_scan
from tests.benchmarks.timing import seconds_once
from tests.llama_shaped import weight, write_checkpoint

SHAPES = {"q": (4096, 4096), "up": (11008, 4096)}


def run() -> list[dict[str, object]]:
    """Measure both shapes, then a checkpoint."""
    rows: list[dict[str, object]] = []
    reference: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        named = os.environ.get("SPECTRA_BENCH_CHECKPOINT")
        checkpoint = Path(named) if named else Path(folder) / "two-layers"
        if not named:
            write_checkpoint(checkpoint, layers=2)
        whole = seconds_once(lambda: run_scan(checkpoint, f"{folder}/scan.zarr"))
        peak = peak_memory_bytes() / 1e9  # before the reference takes its own
        approximate = seconds_once(
            lambda: run_scan(checkpoint, f"{folder}/approximate.zarr", approximate=True)
        )
        counts = Counter(m.rows * m.cols for m in open_checkpoint(checkpoint).matrices)
    for role, (m, n) in SHAPES.items():
        matrix = weight(m, n, role, torch.Generator().manual_seed(0))
        exact = torch.linalg.svdvals(matrix.double()).numpy()
        ours = singular_values(matrix, method="mixed").numpy()
        above = exact > 1e-2 * exact[0]
        theirs = seconds_once(lambda x=matrix: torch.svd(x.float()))  # as the reference does
        reference[m * n] = theirs
        row: dict[str, object] = {"what": f"{m} x {n}, one alone", "reference s": theirs}
        row["ours s"] = seconds_once(lambda x=matrix: singular_values(x, method="mixed"))
        row["reference/ours"] = theirs / float(str(row["ours s"]))
        row["error"] = float(np.abs(ours / exact - 1)[above].max())
        rows.append(row | {"peak GB": np.nan})
    expected = sum(reference[size] * count for size, count in counts.items())
    for name, seconds in (("scan", whole), ("scan --approximate", approximate)):
        rows.append(
            {
                "what": f"{name}, {sum(counts.values())} matrices",
                "reference s": expected,
                "ours s": seconds,
                "reference/ours": expected / seconds,
                "error": np.nan,
                "peak GB": peak if name == "scan" else np.nan,
            }
        )
    return rows

"""Every measure of the 210 matrices of SmolLM2-135M, decompositions included, beside WeightWatcher.

Ours are all columns of `spectra metrics` (fits, likelihood ratios, bulk, random distance), without
and with the bootstrap. WeightWatcher's defaults have neither bulk nor random matrix; with
`mp_fit` and `randomize` it measures about what we do, and takes minutes. Needs the extra `peers`.
"""

import contextlib
import io
import logging

import numpy as np
import torch

from spectra.linalg import singular_values_of_many
from spectra.matrices import find_matrices
from spectra.metrics.measures import measures
from spectra.metrics.weightwatcher import columns
from tests.benchmarks.timing import median_seconds, seconds_once
from tests.smollm import smollm


def run() -> list[dict[str, object]]:
    """Time all matrices of the model."""
    model = smollm()
    found, _ = find_matrices(model)
    sides = np.array([(matrix.rows, matrix.cols) for matrix in found])
    tensors = [weight.value.detach() for weight in found.values()]

    def spectra_of_all() -> np.ndarray:
        values = singular_values_of_many(tensors)
        padded = np.full((len(values), max(map(len, values))), np.nan)
        for row, spectrum in zip(padded, values, strict=True):
            row[: len(spectrum)] = spectrum
        return padded

    def ours(replicas: int = 0) -> None:
        measures(spectra_of_all(), sides[:, 0], sides[:, 1], replicas=replicas)

    def compatible() -> None:
        for spectrum, (rows, cols) in zip(spectra_of_all(), sides, strict=True):
            columns(spectrum, int(rows), int(cols))

    all_measures = median_seconds(ours, 3)
    seconds = {
        "decompositions alone": median_seconds(spectra_of_all, 3),
        "all measures": all_measures,
        "all measures, 100 replicas": seconds_once(lambda: ours(100)),
        "compat='weightwatcher'": median_seconds(compatible, 3),
        "WeightWatcher, defaults": seconds_once(lambda: weightwatcher(model, len(found))),
        "WeightWatcher, mp_fit and randomize": seconds_once(
            lambda: weightwatcher(model, len(found), mp_fit=True, randomize=True)
        ),
    }
    return [
        {"what": what, "seconds": value, "over all measures": value / all_measures}
        for what, value in seconds.items()
    ]


def weightwatcher(model: torch.nn.Module, matrices: int, **options: bool) -> None:
    """Let WeightWatcher analyse the blocks of a model, and see that it leaves none out."""
    import weightwatcher as peer

    logging.getLogger("weightwatcher").setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        table = peer.WeightWatcher(model=model.model.layers).analyze(**options)
    assert len(table) == matrices, f"WeightWatcher measured {len(table)} of {matrices} matrices"

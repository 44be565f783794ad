"""What is measured at a snapshot: pure functions from a model to the arrays of one row."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spectra.linalg import singular_values_of_many
from spectra.record.probe import Probe, probe_gradients
from spectra.record.sketch import CountSketch

Arrays = dict[str, npt.NDArray[np.float32]]


class Timings(defaultdict[str, float]):
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        super().__init__(float)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self[name] += time.perf_counter() - started

    @property
    def seconds(self) -> float:
        return sum(self.values())


def measure_snapshot(
    model: torch.nn.Module,
    parameters: list[torch.nn.Parameter],
    probe: Probe | None,
    *,
    before: list[torch.Tensor] | None,
    sketch: CountSketch | None,
    timings: Timings,
) -> Arrays:
    """Measure every matrix of a model.

    Parameters
    ----------
    model
        The model, as it is now.
    parameters
        The weights of its matrices.
    probe
        The fixed batch for gradients; None leaves gradients out.
    before
        The weights before the last update; emptied here as they are used up, so that no more than
        one copy of the block weights is held at a time. None leaves updates out.
    sketch
        Projects the gradients; None leaves sketches out.
    timings
        Told what took how long.

    Returns
    -------
    Arrays by their path in the store, e.g. ``spectra/weight``: (matrix, index), NaN beyond the rank
    and where the loss does not depend on a matrix.
    """
    arrays: Arrays = {}
    shapes = [p.shape for p in parameters]
    with torch.no_grad():
        if before is not None:
            with timings.measure("decomposition"):
                for parameter, old in zip(parameters, before, strict=True):
                    torch.sub(parameter.detach(), old, out=old)
                arrays["spectra/update"] = spectra_array(before, shapes)
                before.clear()
        with timings.measure("decomposition"):
            weights = [p.detach() for p in parameters]
            arrays["spectra/weight"] = spectra_array(weights, shapes)
    if probe is None:
        return arrays
    with timings.measure("probe gradient"):
        gradients = probe_gradients(model, probe, parameters)
    with timings.measure("decomposition"):
        arrays["spectra/gradient"] = spectra_array(gradients, shapes)
    if sketch is not None:
        with timings.measure("sketch"):
            arrays["sketches/gradient"] = _sketches(gradients, sketch)
    return arrays


def spectra_array(
    matrices: Sequence[torch.Tensor | None], shapes: Sequence[Sequence[int]]
) -> npt.NDArray[np.float32]:
    """Singular values of several matrices as one array (matrix, index), padded with NaN."""
    width = max(min(shape) for shape in shapes)
    array = np.full((len(matrices), width), np.nan, np.float32)
    present = [i for i, matrix in enumerate(matrices) if matrix is not None]
    values = singular_values_of_many([m for m in matrices if m is not None])
    for i, spectrum in zip(present, values, strict=True):
        array[i, : len(spectrum)] = spectrum
    return array


def _sketches(
    gradients: Sequence[torch.Tensor | None], sketch: CountSketch
) -> npt.NDArray[np.float32]:
    array: npt.NDArray[Any] = np.full((len(gradients), sketch.components), np.nan, np.float32)
    for i, gradient in enumerate(gradients):
        if gradient is not None:
            array[i] = sketch(gradient).cpu().numpy()
    return array

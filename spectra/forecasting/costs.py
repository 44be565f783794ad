"""Unit costs: seconds that steps take on this machine, each measured by running it on a sample.

A sample is the step's own code on a matrix of at most `LARGEST` entries a side. Larger ones are
taken to cost as much more as a power of the side says, measured from 1536 to 4096: between what
products take (3) and what passes over a matrix take (2).
"""

import functools
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spectra.allocation.rankmap import Module
from spectra.calibration.draws import drawn
from spectra.calibration.statistics import add_products
from spectra.checkpoint.checkpoint import Tensors
from spectra.checkpoint.digests import digest
from spectra.compression.compress import factorised
from spectra.compression.truncation import ShortSide, covariance_root, decompose
from spectra.compression.weighting import Plain, Weighting
from spectra.machine.cores import single_threaded_workers
from spectra.matrices import Matrix
from spectra.pruning.sparsity import Pattern, magnitude, sparsegpt, wanda
from spectra.scanning import decomposition
from spectra.storages.stored import Factors
from spectra_data.cache import cache_folder

LARGEST = 1536
SPECTRUM, DECOMPOSITION, ROOT, TRUNCATION, PLAIN_TRUNCATION = 2.75, 2.95, 2.6, 2.5, 2.8
"""Powers of the side by which the costs of larger matrices grow."""
LEAST_SECONDS, LONG_SECONDS = 0.03, 0.3
READ_BYTES = 64 << 20
WRITTEN_BYTES = 32 << 20
TOKENS = 256


def timed(run: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> float:
    """Seconds of a call: of the first, if it takes long, else the least of several.

    The first of them also loads what later ones use. What is done before each is not counted.
    """
    found: list[float] = []
    while sum(found) < LEAST_SECONDS or (len(found) < 2 and found[0] < LONG_SECONDS):
        before()
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return min(found)


def timed_together(run: Callable[[], Any], count: int) -> float:
    """Seconds of a call when as many run at once, each on one thread."""
    with single_threaded_workers(count) as pool:
        return timed(lambda: list(pool.map(lambda _: run(), range(count))))


@dataclass(frozen=True)
class Rate:
    """Seconds for some bytes."""

    bytes_per_second: float

    def seconds(self, count: float) -> float:
        """Seconds for a number of bytes."""
        return count / self.bytes_per_second


def reading(source: Tensors, *, hashed: bool = False) -> Rate:
    """The rate at which tensors of a checkpoint are read, and hashed if wanted."""
    done, started = 0, time.perf_counter()
    for name, stored in source.tensors.items():
        if stored.problem or stored.dtype is None:
            continue
        tensor = source.read(name)
        if hashed:
            digest(tensor)
        done += tensor.numel() * tensor.element_size()
        if done > READ_BYTES:
            break
    return Rate(max(done, 1) / max(time.perf_counter() - started, 1e-6))


def _scale(rows: int, cols: int) -> float:
    return min(1.0, LARGEST / min(rows, cols))


def _sampled(rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    scale = _scale(rows, cols)
    draw = np.random.default_rng(0)
    sides = max(1, round(rows * scale)), max(1, round(cols * scale))
    return torch.from_numpy(draw.standard_normal(sides, dtype=np.float32)).to(dtype)


@functools.cache
def spectrum(
    rows: int,
    cols: int,
    dtype: torch.dtype,
    options: decomposition.DecompositionOptions,
    count: int,
) -> float:
    """Seconds of a matrix of a scan, of which a number are decomposed at once."""
    weight = _sampled(rows, cols, dtype)
    matrix = Matrix("model.layers.0.sample", 0, "sample", *weight.shape)
    run = functools.partial(decomposition.decompose, matrix, weight, options)
    power = 2.0 if options.approximate else SPECTRUM
    return float(timed_together(run, count) * _scale(rows, cols) ** -power)


@functools.cache
def products(side: int) -> float:
    """Seconds for a token of the sum of products of vectors with `side` features."""
    side, own = min(side, LARGEST), side
    lower = torch.zeros(side, side, dtype=torch.float64)
    tokens = torch.ones(TOKENS, side)
    found = timed(lambda: add_products(lower, tokens)) / TOKENS
    return found * (own / side) ** 2


def decomposed(rows: int, cols: int, count: int) -> float:
    """Seconds of the decomposition of a matrix weighted by text, `count` of them at once."""
    side = min(rows, cols)
    return products(side) * max(rows, cols) + _decomposed(side, count)


@functools.cache
def _decomposed(side: int, count: int) -> float:
    at = min(side, LARGEST)
    moment = _moment(at)
    root = covariance_root(moment, shrinkage=0.01)

    def run() -> ShortSide:
        return decompose(moment.clone(), root, of_outputs=True)

    found = timed(run) if count == 1 else timed_together(run, count) / count
    found *= float((side / at) ** DECOMPOSITION)
    rooting = timed(lambda: covariance_root(moment, shrinkage=0.01))
    return found + rooting * float((side / at) ** ROOT)


def _moment(side: int) -> torch.Tensor:
    draw = np.random.default_rng(0)
    tokens = torch.from_numpy(draw.standard_normal((2 * side, side), dtype=np.float32))
    tokens *= torch.linspace(1, 0.01, side)
    return (tokens.mT @ tokens / len(tokens)).double()


class _Known(Weighting):
    """A decomposition in memory."""

    def __init__(self, side: ShortSide) -> None:
        self._side = side

    def spectrum(self, read: Any) -> torch.Tensor:
        return self._side.spectrum

    def truncated(self, weight: torch.Tensor, rank: int) -> Factors:
        return self._side.truncated(weight, rank)


@functools.cache
def truncated(
    rows: int, cols: int, rank: int, storage: str, dtype: torch.dtype, calibrated: bool
) -> float:
    """Seconds in which a matrix becomes its stored factors."""
    weight = _sampled(rows, cols, dtype)
    scale = _scale(rows, cols)
    own = max(1, round(rank * scale))
    full = min(weight.shape)
    dense = weight.numel()
    module = Module(
        "model.layers.0.sample",
        0,
        "sample",
        rows=weight.shape[0],
        cols=weight.shape[1],
        full_rank=full,
        rank=own,
        kind="N-LRC",
        factored=True,
        relative_error=0.0,
        params_dense=dense,
        params=dense,
    )
    weighting: Weighting = Plain()
    if calibrated:
        of_outputs = rows < cols
        moment = _moment(min(weight.shape))
        root = covariance_root(moment, shrinkage=0.01)
        weighting = _Known(decompose(moment, root, of_outputs=of_outputs))
    run = functools.partial(factorised, weight, module, weighting, storage, dtype)
    power = TRUNCATION if calibrated else PLAIN_TRUNCATION
    return float(timed(run) * scale**-power)


@functools.cache
def drawing(rows: int, vocabulary: int) -> float:
    """Seconds in which a token is drawn for some rows."""
    logits = torch.zeros(rows, vocabulary)
    uniform = torch.full((rows,), 0.5, dtype=torch.float64)
    return timed(lambda: drawn(logits.softmax(dim=-1), uniform))


@functools.cache
def writing() -> Rate:
    """The rate at which a result is written and hashed, measured in the cache's folder."""
    folder = cache_folder("forecasts")
    folder.mkdir(parents=True, exist_ok=True)
    content = torch.ones(WRITTEN_BYTES // 4)

    def write() -> None:
        digest(content)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(content.numpy().data)
            file.flush()
            os.fsync(file.fileno())

    return Rate(WRITTEN_BYTES / timed(write))


@functools.cache
def pruned(rows: int, cols: int, pattern: Pattern, method: str) -> float:
    """Seconds in which a matrix gets its zeros."""
    scale = min(1.0, LARGEST / max(rows, cols))
    draw = np.random.default_rng(0)
    sides = max(1, round(rows * scale)), max(8, round(cols * scale) // 8 * 8)
    weight = torch.from_numpy(draw.standard_normal(sides, dtype=np.float32))
    if method == "magnitude":
        return timed(lambda: magnitude(weight, pattern)) * scale**-2
    if method == "wanda":
        return timed(lambda: wanda(weight, torch.ones(sides[1]), pattern)) * scale**-2
    second = _moment(sides[1])
    return timed(lambda: sparsegpt(weight, second, pattern)) * scale**-3

"""One matrix of a checkpoint, from its file to its singular values."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from spectra.checkpoint.address import Address
from spectra.checkpoint.checkpoint import Checkpoint, open_checkpoint
from spectra.checkpoint.digests import digest
from spectra.density import approximate_singular_values
from spectra.linalg import singular_values
from spectra.machine.cores import one_blas_thread
from spectra.matrices import Matrix
from spectra_data.errors import InputError

FLOAT64 = 8


@dataclass(frozen=True)
class DecompositionOptions:
    """Options of the computation of spectra."""

    approximate: bool = False
    """Whether to estimate them from random probes, with error bars, instead of exactly."""
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of a matrix, or why it could not be read."""

    matrix: Matrix
    values: npt.NDArray[np.float64]
    """Singular values, (full_rank,), descending; all NaN if the weight is not finite, infinite
    where a value exceeds float64."""
    errors: npt.NDArray[np.float64] | None
    """Standard errors of the values; None if these are exact."""
    sha256: bytes
    problem: str | None = None
    """Reason why it could not be read."""


def decompose(matrix: Matrix, weight: torch.Tensor, options: DecompositionOptions) -> Spectrum:
    """Compute the spectrum of a weight."""
    sha256 = digest(weight)
    weight = weight.to(options.device)
    errors = None
    if options.approximate:
        values, errors = approximate_singular_values(weight, seed=options.seed)
    else:
        values = singular_values(weight, method="mixed").cpu().numpy()
    return Spectrum(matrix, values, errors, sha256)


def unread(matrix: Matrix, problem: str) -> Spectrum:
    """The result for a matrix that could not be read."""
    return Spectrum(matrix, np.full(matrix.full_rank, np.nan), None, b"", problem)


def weights(
    checkpoint: Checkpoint, group: Sequence[Matrix]
) -> Iterator[tuple[Matrix, torch.Tensor | str]]:
    """The weights of matrices that share one tensor, or why each cannot be read."""
    done = 0
    try:
        for matrix, weight in checkpoint.read_together(group):
            yield matrix, weight
            done += 1
    except InputError as error:
        for matrix in group[done:]:
            yield matrix, str(error)


def decompose_group(
    address: Address, group: Sequence[Matrix], options: DecompositionOptions, scan: str
) -> list[Spectrum]:
    """Read and decompose matrices that share one tensor, in the process that runs this.

    A process opens the checkpoint once per scan; `scan` is a unique name of the scan.
    """
    checkpoint = _opened(address, scan)
    with one_blas_thread:
        return [
            unread(matrix, weight)
            if isinstance(weight, str)
            else decompose(matrix, weight, options)
            for matrix, weight in weights(checkpoint, group)
        ]


def working_bytes(matrix: Matrix, options: DecompositionOptions) -> int:
    """Memory that the decomposition of a matrix needs in bytes, the weight included."""
    side = matrix.full_rank
    weight = matrix.rows * matrix.cols * 4
    return weight if options.approximate else weight + 2 * side * side * FLOAT64


@functools.lru_cache(maxsize=2)
def _opened(address: Address, scan: str) -> Checkpoint:
    return open_checkpoint(address, updates=True)

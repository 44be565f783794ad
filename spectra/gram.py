r"""The smaller Gram matrix of a large matrix, in bounded memory, and its eigenvalues.

Half the time of an exact decomposition goes into forming :math:`XX^T`. In float32 that takes half
as long as in float64, and the loss is known: the products of a block of columns are summed in
float32, the blocks in float64. The loss, a symmetric matrix, is multiplied with random vectors
(Freivalds 1979), so that every entry counts, and turned into an error of every eigenvalue; a caller
that needs a smaller error forms it in float64.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from numpy.linalg import eigvalsh
from scipy.linalg.blas import dsymm

BLOCK = 512
"""Columns whose products are summed in float32, and the side of a tile that fits a core's cache."""
WIDE_BLOCK = 2048
"""Columns at a time in float64: 67 MB of a matrix with 4096 rows."""
PROBES = 8
"""Random vectors that measure the loss."""
UNIT = 2.0**-24
"""Unit of float32's rounding."""
TWO_STAGE = 2560
"""Side from which MKL, inside torch, computes eigenvalues faster than OpenBLAS, inside numpy."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rounding:
    """Loss of a Gram matrix to float32."""

    entry: float
    """Typical error of an entry, where most of the error is."""
    largest: float = 0.0
    """Largest error of a single entry, which matters if few entries dominate."""

    def error(self, eigenvalues: Doubles, floor: float) -> float:
        r"""Largest relative error of the singular values above `floor` times the largest.

        Parameters
        ----------
        eigenvalues
            (side,) of the Gram matrix, ascending.
        floor
            Share of the largest singular value.

        Notes
        -----
        Rounding is a symmetric matrix of independent entries of size e. An eigenvalue that keeps
        its distance moves by its first-order term, of standard deviation √2·e; the m eigenvalues
        within a window mix, and move by up to the norm 2e√m of the part of it that they see. Each
        eigenvalue's window is the least that holds no more eigenvalues than were counted for it.
        Outlying entries, of sparse or correlated rows, add the rounding of the largest. A
        singular value errs by half the relative error of its eigenvalue.
        """
        if eigenvalues[-1] <= 0:
            return 0.0
        above = eigenvalues[eigenvalues >= floor**2 * eigenvalues[-1]]
        inside = np.ones(len(above))
        while True:
            window = self.entry * (4 + 2 * np.sqrt(inside)) + self.largest
            first = np.searchsorted(eigenvalues, above - window, side="left")
            last = np.searchsorted(eigenvalues, above + window, side="right")
            if not (last - first > inside).any():
                return float((window / (2 * above)).max())
            inside = np.maximum(inside, last - first)


def gram(matrix: torch.Tensor) -> Doubles:
    """Gram matrix over the smaller side, in float64: (side, side).

    Parameters
    ----------
    matrix
        (rows, cols) on the CPU, finite, of any floating dtype.
    """
    side, length = min(matrix.shape), max(matrix.shape)
    total = np.zeros((side, side))
    product = np.empty((side, side)) if length > WIDE_BLOCK else total
    for block in _blocks(matrix, WIDE_BLOCK, torch.float64, 0):
        np.matmul(block, block.T, out=product)
        if product is not total:
            total += product
    return total


def rounded_gram(matrix: torch.Tensor) -> tuple[Doubles, Rounding, int]:
    """Lower half of the Gram matrix over the smaller side from float32 products.

    Parameters
    ----------
    matrix
        See `gram`.

    Returns
    -------
    The Gram matrix (side, side) of the matrix times 2^-exponent, its loss, and that exponent, which
    makes the largest entry less than 1.
    """
    side = min(matrix.shape)
    _, exponent = np.frexp(float(torch.stack(torch.aminmax(matrix)).float().abs().max()))
    total = np.zeros((side, side))
    diagonal = np.zeros(side)
    probes = np.empty((side, 0))
    tile = np.empty((BLOCK, BLOCK), np.float32)
    double = np.empty((side, BLOCK))
    for block in _blocks(matrix, BLOCK, torch.float32, int(exponent)):
        if not probes.size:  # seeded by the content, so that no matrix can be made to escape them
            draw = np.random.default_rng(zlib.crc32(block.tobytes()))
            probes = draw.choice((-1.0, 1.0), (side, PROBES))
            exact = np.zeros_like(probes)
        rows = double[:, : block.shape[1]]
        np.copyto(rows, block)
        diagonal += np.einsum("ij,ij->i", rows, rows)
        exact += rows @ (rows.T @ probes)
        for i in range(0, side, BLOCK):
            left = block[i : i + BLOCK]
            for j in range(0, i + 1, BLOCK):
                right = block[j : j + BLOCK]
                part = tile[: len(left), : len(right)]
                np.matmul(left, right.T, out=part)
                total[i : i + BLOCK, j : j + BLOCK] += part
    np.fill_diagonal(total, 0.0)
    largest = max(float(np.abs(total[i : i + BLOCK]).max()) for i in range(0, side, BLOCK))
    np.fill_diagonal(total, diagonal)
    # Fortran sees the transposed matrix, of which this is the upper half
    lost = dsymm(1.0, total.T, probes, lower=0) - exact
    return total, _rounding(lost, 2 * UNIT * largest), int(exponent)


def eigenvalues(symmetric: Doubles) -> Doubles:
    """Eigenvalues of a symmetric matrix, from its lower half: (side,), ascending."""
    if len(symmetric) >= TWO_STAGE and torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return np.asarray(torch.linalg.eigvalsh(torch.from_numpy(symmetric), UPLO="L"))
    return np.asarray(eigvalsh(symmetric, UPLO="L"))


def _rounding(lost: Doubles, largest: float) -> Rounding:
    """Rounding from the loss E times random signs z: (side, probes).

    The mean of |Ez|² is the sum of E's squared entries, that of (Ez·Ez')² for two vectors the
    trace of E⁴: together they show over how many rows the loss is spread. Independent entries of
    size e in m rows and columns have m²e² and 2m³e⁴.
    """
    products = lost.T @ lost
    squares = np.diag(products).mean()
    if squares == 0:
        return Rounding(0.0, largest)
    fourth = np.square(products[np.triu_indices(len(products), 1)]).mean()
    spread = min(max(2 * squares**2 / max(fourth, np.finfo(float).tiny), 1.0), float(len(lost)))
    return Rounding(float(np.sqrt(squares) / spread), largest)


def _blocks(
    matrix: torch.Tensor, width: int, dtype: torch.dtype, exponent: int
) -> Iterator[npt.NDArray[np.floating]]:
    """Blocks (side, width) along the longer side, times 2^-exponent, in one buffer."""
    wide = matrix.shape[0] <= matrix.shape[1]
    side, length = min(matrix.shape), max(matrix.shape)
    # laid out as the matrix is, so that copying runs along memory
    width = min(width, length)
    buffer = torch.empty((side, width) if wide else (width, side), dtype=dtype)
    for start in range(0, length, width):
        if wide:
            block = buffer[:, : min(width, length - start)]
            block.copy_(matrix[:, start : start + width])
        else:
            block = buffer[: min(width, length - start)]
            block.copy_(matrix[start : start + width])
        if exponent:  # in two steps, since a single power may be out of range
            block.mul_(2.0 ** (-exponent // 2)).mul_(2.0 ** (-exponent - -exponent // 2))
        yield (block if wide else block.T).numpy()

r"""The leading singular triplets of a large matrix, without decomposing all of it.

Eigenvectors of the smaller Gram matrix, only as many as the rank: the result is a truncation, and
the error from rounding squares, even in float32, is far below the part that is cut off. For low
ranks, subspace iteration (Halko, Martinsson and Tropp 2011): a random start with a few more columns
than the rank is multiplied by :math:`XX^T` until the share of :math:`\|X\|_F^2` that it captures
stops growing. On 4096 x 4096 they take a third and a sixth of the time of torch's decomposition.
"""

import torch
from scipy.linalg import eigh

from spectra.storages.stored import Factors

SMALL_SIDE = 1024
"""Smaller side below which a full decomposition in float64 is as fast."""
LOW = 0.1
"""Share of the smaller side up to which a rank is low enough for iteration."""
OVERSAMPLING = 0.1
LEAST_OVERSAMPLING = 32
TOLERANCE = 1e-3
"""Share of the truncation's squared error: iteration stops when a step gains less."""
STEPS = 12


def leading_factors(matrix: torch.Tensor, rank: int) -> Factors:
    r"""Factors :math:`U_r\sqrt{S_r}` and :math:`\sqrt{S_r}V_r^T` of the best product of a rank.

    Parameters
    ----------
    matrix
        Matrix, (rows, cols), finite, on any device. It is decomposed in float64 if a side is small
        or it is float64 itself, else in float32, where the squared error is at most about
        `TOLERANCE` above the least (the tests measure it).
    rank
        Rank, from 1 to the smaller side.

    Raises
    ------
    RuntimeError
        When LAPACK's decomposition does not converge.
    """
    side = min(matrix.shape)
    if side < SMALL_SIDE or rank == side:
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        half = s[:rank].sqrt()
        return Factors(u[:, :rank] * half, half[:, None] * vh[:rank])
    if matrix.shape[0] > matrix.shape[1]:
        turned = leading_factors(matrix.mT, rank)
        return Factors(turned.right.mT, turned.left.mT)
    x = matrix if matrix.dtype == torch.float64 else matrix.float()
    scale = float(x.abs().max())
    if scale == 0:
        return Factors(x.new_zeros(x.shape[0], rank), x.new_zeros(rank, x.shape[1]))
    x = x / scale
    basis, values = _iterated(x, rank) if rank <= LOW * side else _of_gram(x, rank)
    half = values.clamp(min=torch.finfo(torch.float32).tiny).sqrt().sqrt().to(x.dtype)
    return Factors(basis * half * scale**0.5, basis.mT @ x / half[:, None] * scale**0.5)


def _of_gram(x: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Leading left vectors (rows, rank), and eigenvalues of x xᵀ (rank,), descending."""
    gram = x @ x.mT
    if x.device.type != "cpu":
        values, vectors = torch.linalg.eigh(gram)
        return vectors[:, -rank:].flip(-1), values[-rank:].flip(-1).double()
    side = len(gram)
    found, wanted = eigh(
        gram.numpy(), subset_by_index=(side - rank, side - 1), overwrite_a=True, check_finite=False
    )
    vectors = torch.from_numpy(wanted[:, ::-1].copy())
    return vectors, torch.from_numpy(found[::-1].copy()).double()


def _iterated(x: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_of_gram`, by subspace iteration."""
    total = float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
    width = rank + max(LEAST_OVERSAMPLING, int(OVERSAMPLING * rank))
    generator = torch.Generator(x.device).manual_seed(0)
    start = torch.randn(x.shape[1], width, generator=generator, device=x.device, dtype=x.dtype)
    basis = _orthonormal(x @ start)  # (rows, width)
    held = -1.0
    for _ in range(STEPS):
        inside = basis.mT @ x  # (width, cols)
        values, vectors = torch.linalg.eigh((inside @ inside.mT).double())
        captured = float(values[-rank:].sum())
        if captured - held <= TOLERANCE * max(total - captured, 0.0):
            break
        held = captured
        basis = _orthonormal(x @ _orthonormal(inside.mT))
    return basis @ vectors[:, -rank:].flip(-1).to(basis.dtype), values[-rank:].flip(-1)


def _orthonormal(y: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the columns' span, by Cholesky twice, which uses only products."""
    for _ in range(2):
        y = y / torch.linalg.vector_norm(y, dim=0).clamp(min=torch.finfo(y.dtype).tiny)
        factor, failed = torch.linalg.cholesky_ex((y.mT @ y).double())
        if failed:
            basis: torch.Tensor = torch.linalg.qr(y)[0]
            return basis
        solved: torch.Tensor = torch.linalg.solve_triangular(factor.to(y.dtype), y.mT, upper=False)
        y = solved.mT
    return y

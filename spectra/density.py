r"""Approximate spectra: the leading values, and the density of the others with error bars.

Block Lanczos from random vectors. Eigenvalues that converge are leading values, each with its
residual as error (Golub and Van Loan, Matrix Computations, section 10.3); the others are nodes of
a quadrature of the spectral density (Lin, Saad and Yang 2016; Ghorbani, Krishnan and Xiao 2019),
read off as quantiles. A matrix of 4096 x 4096 costs 40 products with a block of 16 vectors instead
of its own square and a decomposition. What it trades away: single values of the bulk are known to
within their error bars only, and the smallest worst.
"""

import numpy as np
import numpy.typing as npt
import torch

from spectra.linalg import singular_values

EXACT_SIDE = 512
"""Matrices up to this side are decomposed: that is as fast."""
PROBES = 16
STEPS = 20
COARSER = 4
"""Steps fewer, for the error that the number of steps causes."""
ROUNDING = 1e-6
"""Least error, over the largest value: products are formed in float32."""
CONVERGED = 1e-2
"""Residual over value under which a singular value counts as found."""

Doubles = npt.NDArray[np.float64]


def approximate_singular_values(
    matrix: torch.Tensor, *, seed: int = 0, probes: int = PROBES, steps: int = STEPS
) -> tuple[Doubles, Doubles]:
    """Singular values with standard errors, from random probes.

    Parameters
    ----------
    matrix
        (rows, cols), of any floating dtype, on any device.
    seed
        Of the probes.
    probes
        Random vectors whose densities are averaged.
    steps
        Lanczos steps: the degree of the quadrature.

    Returns
    -------
    Values (min(rows, cols),), descending, and their standard errors. Of a leading value that
    converged, the residual; of the others, the spread between probes over the root of their
    number, and what four steps fewer would have changed. Exact, with errors of 0, for sides up to
    512; NaN throughout for a matrix that is not finite.
    """
    side = min(matrix.shape)
    if side <= EXACT_SIDE:
        values = singular_values(matrix).cpu().numpy()
        return values, np.where(np.isfinite(values), 0.0, np.nan)
    x = matrix.detach()
    x = x if x.is_floating_point() and x.element_size() >= 4 else x.float()
    largest = float(x.abs().max())
    if not np.isfinite(largest) or largest == 0:
        values = np.full(side, largest * 0.0)
        return values, values.copy()
    x = ((x if x.shape[0] <= x.shape[1] else x.T) / largest).float()
    projected, last = _block_lanczos(x, torch.Generator().manual_seed(seed), probes, steps)
    values, spread = _spectrum(projected, last, side, probes)
    fewer = probes * (steps - COARSER)
    coupling = projected[fewer : fewer + probes, fewer - probes : fewer]
    coarse, _ = _spectrum(projected[:fewer, :fewer], coupling, side, probes)
    errors = np.where(spread[1], spread[0], np.hypot(spread[0], values - coarse))
    errors = np.maximum(errors, ROUNDING * values[0])
    return values * largest, errors * largest


def _block_lanczos(
    x: torch.Tensor, draw: torch.Generator, probes: int, steps: int
) -> tuple[Doubles, Doubles]:
    """The Gram matrix in the block Krylov space of random orthonormal vectors.

    Returns
    -------
    Block tridiagonal (probes * steps,) * 2, and the block (probes, probes) that couples it to the
    next step.
    """
    size = probes * steps
    projected = torch.zeros(size, size, dtype=torch.float64)
    basis = torch.empty(x.shape[0], size, device=x.device)
    block = torch.linalg.qr(torch.randn(x.shape[0], probes, generator=draw).to(x.device))[0]
    upper = torch.zeros(probes, probes, dtype=torch.float64)
    for step in range(steps):
        here = slice(step * probes, (step + 1) * probes)
        basis[:, here] = block
        new = x @ (x.T @ block)
        own = (block.T @ new).double().cpu()
        projected[here, here] = (own + own.T) / 2
        done = basis[:, : here.stop]
        for _ in range(2):  # once is not enough in float32
            new -= done @ (done.T @ new)
        block, first = torch.linalg.qr(new)
        # where little is new, its directions are rounding, which leans on what was before
        block -= done @ (done.T @ block)
        block, second = torch.linalg.qr(block)
        upper = (second @ first).double().cpu()
        if step < steps - 1:
            after = slice(here.stop, here.stop + probes)
            projected[after, here], projected[here, after] = upper, upper.T
    return projected.numpy(), upper.numpy()


def _spectrum(
    projected: Doubles, coupling: Doubles, side: int, probes: int
) -> tuple[Doubles, tuple[Doubles, npt.NDArray[np.bool_]]]:
    """Values (side,), their errors, and which of them converged."""
    eigenvalues, vectors = np.linalg.eigh(projected)
    eigenvalues, vectors = eigenvalues[::-1].clip(min=0.0), vectors[:, ::-1]
    nodes = np.sqrt(eigenvalues)
    residuals = np.linalg.norm(coupling @ vectors[-probes:], axis=0)
    found = residuals < 2 * CONVERGED * eigenvalues
    count = len(found) if found.all() else int(found.argmin())
    count = min(count, side - 1)
    shares = np.square(vectors[:probes, count:])  # (probe, node)
    wanted = (np.arange(side - count) + 0.5) / (side - count)
    bulk = np.array([_quantiles(nodes[count:], share, wanted) for share in shares])
    leading = residuals[:count] / (2 * np.maximum(nodes[:count], np.finfo(float).tiny))
    middle = _quantiles(nodes[count:], shares.sum(axis=0), wanted)
    spread = bulk.std(axis=0, ddof=1) / np.sqrt(probes)
    values = np.concatenate([nodes[:count], middle])
    return values, (np.concatenate([leading, spread]), np.arange(side) < count)


def _quantiles(nodes: Doubles, share: Doubles, wanted: Doubles) -> Doubles:
    """Values at shares of a density of weighted nodes, both from the largest down."""
    above = (np.cumsum(share) - share / 2) / max(share.sum(), np.finfo(float).tiny)
    return np.interp(wanted, above, nodes)

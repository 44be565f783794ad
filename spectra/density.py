r"""Approximate spectra: the leading values, and the density of the others with error bars.

Block Lanczos from random vectors. Eigenvalues that converge are leading values, each with its
residual as error (Golub and Van Loan, Matrix Computations, section 10.3); the others are nodes of
a quadrature of the spectral density (Lin, Saad and Yang 2016; Ghorbani, Krishnan and Xiao 2019),
read off as quantiles. A quantile can be off in two ways, and its error bar covers both: the density
that random vectors see is a sample of the true one, and a quadrature of few nodes fixes it only to
within the Chebyshev-Markov-Stieltjes bounds. A matrix of 4096 x 4096 costs 40 products with a
block of 16 vectors instead of its own square and a decomposition. What it trades away: single
values of the bulk are known only to within their error bars, 1 to 3 % of the largest value.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betaincinv, ndtr

from spectra.linalg import singular_values

EXACT_SIDE = 512
"""Side up to which matrices are decomposed exactly, which is as fast."""
PROBES = 16
STEPS = 20
ROUNDING = 1e-6
"""Error of an eigenvalue, over the largest: products are formed in float32."""
UNIT = 2.0**-24
"""Unit of float32's rounding."""
CONVERGED = 1e-2
"""Residual over value under which a singular value counts as found."""
DEVIATIONS = 2.5
"""Standard deviations of the sample that two errors cover."""
CENTRED = 0.4
"""Share of the quadrature's bound that two errors cover. The bound is all that the moments allow;
the quadrature lies near its middle, except beyond the first and last block of nodes, where two
errors cover all of it."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quadrature:
    """Spectral decomposition of the Gram matrix within a block Krylov space."""

    nodes: Doubles
    """(size,) eigenvalues, descending."""
    starts: Doubles
    """(probes, size): components of the eigenvectors along the random vectors."""
    ends: Doubles
    """(probes, size): residuals of the eigenvectors, along the block that would come next."""

    @property
    def probes(self) -> int:
        return len(self.starts)

    @property
    def residuals(self) -> Doubles:
        """(size,): distance from each node within which there is an eigenvalue."""
        return np.asarray(np.linalg.norm(self.ends, axis=0))

    def bounds(self, places: Doubles) -> Doubles:
        r"""Largest weight of the density at single points: (places,), out of a total of `probes`.

        The weight of a Gauss-Radau quadrature with a node prescribed there. By the inequalities
        of Chebyshev, Markov and Stieltjes, two densities with the same moments differ by no more
        in their weight above it (Krein and Nudelman 1977; Golub and Meurant 2010, section 6.2).
        """
        inverse = 1 / (self.nodes - places[:, None])
        # null vectors of the extended matrix: their parts at the start, and their lengths
        first = np.einsum("ki,xi,bi->xkb", self.starts, inverse, self.ends, optimize=True)
        lengths = np.einsum("ai,xi,bi->xab", self.ends, inverse**2, self.ends, optimize=True)
        lengths += np.eye(self.probes)
        weights = np.linalg.solve(lengths, first.swapaxes(1, 2) @ first)
        return np.asarray(np.trace(weights, axis1=1, axis2=2))

    def found(self) -> int:
        """Number of leading nodes that are eigenvalues with no other between them."""
        size, probes = len(self.nodes), self.probes
        errors = np.maximum(self.residuals, ROUNDING * self.nodes[0])
        found = self.residuals < 2 * CONVERGED * self.nodes
        # the space holds at most `probes` equal eigenvalues, and there may be more
        apart = np.abs(self.nodes - self.nodes[:, None])
        found &= (apart <= errors + errors[:, None]).sum(axis=1) < probes
        return min(size if found.all() else int(found.argmin()), size - probes)


def approximate_singular_values(
    matrix: torch.Tensor, *, seed: int = 0, probes: int = PROBES, steps: int = STEPS
) -> tuple[Doubles, Doubles]:
    """Singular values with standard errors, from random probes.

    Parameters
    ----------
    matrix
        (rows, cols), of any floating dtype, on any device.
    seed
        Seed of the probes.
    probes
        Random vectors whose densities are averaged.
    steps
        Lanczos steps: the degree of the quadrature.

    Returns
    -------
    Values (min(rows, cols),), descending, and their standard errors. The error of a leading value
    that converged is half of its residual; that of the others is half of what sampling (2.5
    standard deviations) and quadrature (two fifths of what its moments allow) leave open. It is at
    least the rounding of float32 products: 5e-7 of the largest value for those near it, 5e-4 for
    those near 0. Exact, with errors of 0, for sides up to 512; NaN throughout for a matrix that is
    not finite.

    Notes
    -----
    At least nine in ten values of a matrix lie within two errors: the tests measure it on matrices
    of 59 kinds, with clusters, gaps, equal values and exact ranks. The errors of neighbours are
    correlated. Next to a step of a spectrum they are as large as the step, since it is not known
    which value is the last before it.
    """
    side = min(matrix.shape)
    if side <= max(EXACT_SIDE, probes * steps):
        values = singular_values(matrix).cpu().numpy()
        return values, np.where(np.isfinite(values), 0.0, np.nan)
    x = matrix.detach()
    x = x if x.is_floating_point() and x.element_size() >= 4 else x.float()
    largest = float(x.abs().max())
    if not np.isfinite(largest) or largest == 0:
        values = np.full(side, largest * 0.0)
        return values, values.copy()
    x = ((x if x.shape[0] <= x.shape[1] else x.T) / largest).float()
    quadrature = _block_lanczos(x, torch.Generator().manual_seed(seed), probes, steps)
    least, middle, most = np.sqrt(_eigenvalues(quadrature, side))
    errors = np.maximum(most - middle, middle - least) / 2
    return middle * largest, errors * largest


def _block_lanczos(x: torch.Tensor, draw: torch.Generator, probes: int, steps: int) -> Quadrature:
    """The Gram matrix (rows, rows) in the Krylov space of random orthonormal vectors."""
    rows, size = x.shape[0], probes * steps
    projected = torch.zeros(size, size, dtype=torch.float64)  # block tridiagonal
    basis = torch.empty(rows, size, device=x.device)
    block = torch.linalg.qr(torch.randn(rows, probes, generator=draw).to(x.device))[0]
    coupling = torch.zeros(probes, probes, dtype=torch.float64)
    scale = 0.0
    for step in range(steps):
        here = slice(step * probes, (step + 1) * probes)
        basis[:, here] = block
        new = x @ (x.T @ block)
        own = (block.T @ new).double().cpu()
        projected[here, here] = (own + own.T) / 2
        scale = max(scale, float(own.diagonal().max()))
        done = basis[:, : here.stop]
        for _ in range(2):  # once is not enough in float32
            new -= done @ (done.T @ new)
        # where nothing is new, fresh directions; as large as rounding, so they change no value
        fresh = torch.randn(rows, probes, generator=draw).to(x.device)
        new += UNIT * scale * rows**-0.5 * fresh
        block, first = torch.linalg.qr(new)
        # where little is new, its directions are rounding, which leans towards earlier blocks
        block -= done @ (done.T @ block)
        block, second = torch.linalg.qr(block)
        coupling = (second @ first).double().cpu()
        if step < steps - 1:
            after = slice(here.stop, here.stop + probes)
            projected[after, here], projected[here, after] = coupling, coupling.T
    values, vectors = np.linalg.eigh(projected.numpy())
    values, vectors = values[::-1].clip(min=0.0), vectors[:, ::-1]
    return Quadrature(values, vectors[:probes], coupling.numpy() @ vectors[-probes:])


def _eigenvalues(quadrature: Quadrature, side: int) -> Doubles:
    """Lower bound, estimate and upper bound of every eigenvalue: (3, side), each descending."""
    count = quadrature.found()
    found, residuals = quadrature.nodes[:count], quadrature.residuals[:count]
    least, middle, most = _of_bulk(quadrature, count, side)
    # eigenvalues within a subspace are no larger, and only so many lie outside it
    size = len(quadrature.nodes)
    inside = np.zeros(side)
    inside[:size] = quadrature.nodes
    least = np.maximum(least, inside[count:])
    outside = np.full(side, np.inf)
    outside[side - size :] = quadrature.nodes
    most = np.maximum(np.minimum(most, outside[count:]), least)
    rounding = ROUNDING * quadrature.nodes[0]
    least = np.concatenate([found - residuals, least]) - rounding
    most = np.concatenate([found + residuals, most]) + rounding
    middle = np.minimum.accumulate(np.concatenate([found, middle]))
    return np.stack([least.clip(min=0.0), middle, most])


def _of_bulk(quadrature: Quadrature, count: int, side: int) -> Doubles:
    """Lower bound, estimate and upper bound after the first `count` values: (3, side - count)."""
    nodes = quadrature.nodes[count:]
    weights = np.square(quadrature.starts[:, count:]).sum(axis=0)
    total = weights.sum()
    above = np.cumsum(weights) / total
    cuts, tops, bottoms, passed = _cells(quadrature, count)
    held = np.concatenate([[0.0], above])[passed]
    ends = (passed < quadrature.probes) | (passed > len(nodes) - quadrature.probes)
    open_ = np.where(ends, 1.0, CENTRED) * quadrature.bounds(cuts) / total
    low, high = _sampled(side - count, side, quadrature.probes)
    # an eigenvalue lies above the first cut that may have its share above it already, and below
    # the last one that may not
    up_to = np.minimum.accumulate((held + open_)[::-1])[::-1]
    at_least = np.maximum.accumulate(held - open_)
    most = tops[np.searchsorted(up_to, low, side="left")]
    least = bottoms[np.searchsorted(at_least, high, side="right")]
    shares = (np.arange(side - count) + 0.5) / (side - count)
    middle = np.interp(shares, above - weights / total / 2, np.sqrt(nodes)) ** 2
    most = np.maximum(most, least)
    return np.stack([least, middle.clip(least, most), most])


def _cells(
    quadrature: Quadrature, count: int
) -> tuple[Doubles, Doubles, Doubles, npt.NDArray[np.int64]]:
    """Cuts between and beyond the nodes after the first `count`, and what lies between cuts.

    Returns
    -------
    Cuts (cuts,), descending; greatest and least value in each cell (cuts + 1,) between two of
    them: the nodes in it, else the cuts; and how many nodes lie above each cut (cuts,).
    """
    nodes = quadrature.nodes[count:]
    rounding = ROUNDING * quadrature.nodes[0]
    ceiling = quadrature.nodes[count - 1] if count else nodes[0] + quadrature.residuals[0]
    gaps = np.flatnonzero(nodes[:-1] - nodes[1:] > rounding)
    halves = 0.5 ** np.arange(6)
    beyond = nodes[0] + max(quadrature.nodes[0] - nodes[-1], rounding) * halves / 2
    beyond = beyond[beyond < ceiling]
    below = nodes[-1] * (1 - halves[::-1])
    below = below[below < nodes[-1] - rounding]
    cuts = np.concatenate([beyond, (nodes[gaps] + nodes[gaps + 1]) / 2, below])
    passed = np.concatenate(
        [np.zeros(len(beyond), np.int64), gaps + 1, np.full(len(below), len(nodes))]
    )
    tops, bottoms = np.append(ceiling, cuts), np.append(cuts, 0.0)
    filled = slice(len(beyond), len(beyond) + len(gaps) + 1)
    tops[filled] = nodes[np.append(0, gaps + 1)]
    bottoms[filled] = nodes[np.append(gaps, len(nodes) - 1)]
    tops[0], bottoms[-1] = ceiling, 0.0
    return cuts, tops, bottoms, passed


def _sampled(count: int, side: int, probes: int) -> tuple[Doubles, Doubles]:
    """Share of the random vectors' density from the largest eigenvalue to each of `count`.

    The part of Gaussian vectors along some of the eigenvectors has a beta distribution; that of
    orthonormal vectors varies less, as none is left when they fill the space.

    Returns
    -------
    The least with the eigenvalue's own share, and the most without it: (count,) each, at
    `DEVIATIONS` of a normal distribution.
    """
    freedom = probes * (side + 2) / (side - probes) / 2
    number = np.arange(count)
    tail = ndtr(-DEVIATIONS)
    nothing = np.finfo(float).tiny
    low = betaincinv(
        freedom * (number + 1), np.maximum(freedom * (count - number - 1), nothing), tail
    )
    high = betaincinv(np.maximum(freedom * number, nothing), freedom * (count - number), 1 - tail)
    return low, high

"""Neighbouring methods: ranks that grow together along one scale.

Each gives every matrix a real-valued rank that rises with the scale t; ranks are those rounded. A
target is met by the largest scale that stays within it, and what rounding leaves over is given to
matrices one rank at a time, in the order of their names: the order in which they are handed over
changes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from spectra.allocation.candidates import Candidates, Doubles, Ranks
from spectra.allocation.costs import require_storage
from spectra.metrics.ranks import effective_rank
from spectra.metrics.spectrum import relative
from spectra.metrics.tails import power_law
from spectra.storages.registry import DEFAULT_STORAGE
from spectra_data.errors import InputError

Measure = Callable[[Ranks], float]
ALPHA_SPREAD = 0.3
OWL_SPREAD = 0.08
BISECTIONS = 80


@dataclass(frozen=True, eq=False)
class Family:
    """Ranks along a scale from 0 to 1."""

    wanted: Callable[[float], Doubles]
    """Real-valued ranks at a scale: (matrix,), each rising with it."""
    full_ranks: Ranks
    names: list[str]

    def ranks(self, scale: float) -> Ranks:
        """Rounded, from 1 to the full rank."""
        rounded = np.floor(self.wanted(scale) + 0.5).astype(np.int64)
        return np.clip(rounded, 1, self.full_ranks)

    def largest_within(self, measure: Measure, limit: float) -> Ranks | None:
        """The largest ranks whose measure stays within a limit; None where none do.

        Parameters
        ----------
        measure
            Of ranks; rises with each of them.
        limit
            Not to be exceeded.
        """
        if measure(self.ranks(1.0)) <= limit:
            return self.ranks(1.0)
        if measure(self.ranks(0.0)) > limit:
            return None
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            if measure(self.ranks(middle)) <= limit:
                low = middle
            else:
                high = middle
        ranks, above = self.ranks(low), self.ranks(high)
        for i in sorted(np.flatnonzero(above > ranks), key=lambda i: self.names[i]):
            more = ranks.copy()
            more[i] += 1
            if measure(more) > limit:
                break
            ranks = more
        return ranks


Outliers = Mapping[str, float] | Mapping[int, float]
"""Shares of outliers, by the path of a block or its number."""


def uniform(candidates: Candidates) -> Family:
    """The same fraction of every full rank."""
    full = candidates.full_ranks
    return Family(lambda t: np.asarray(t * full, np.float64), full, candidates.names)


def uniform_parameters(candidates: Candidates, storage: str = DEFAULT_STORAGE) -> Family:
    """The same fraction of every matrix' parameters; whole at 1."""
    full = candidates.full_ranks
    rows, cols, rank_of = candidates.rows, candidates.cols, require_storage(storage).rank_of

    def wanted(t: float) -> Doubles:
        if t >= 1:
            return full.astype(np.float64)
        return rank_of(rows, cols, np.asarray(t * (rows * cols), np.float64))

    return Family(wanted, full, candidates.names)


def d_rank(candidates: Candidates) -> Family:
    r"""Ranks in proportion to :math:`\sqrt{\text{effective rank} / \text{cost}}`, up to full.

    Source: D-Rank (layer-wise dynamic rank); the effective rank is that of Roy and Vetterli, the
    cost of a rank the sum of the matrix' sides.
    """
    full = candidates.full_ranks
    effective = np.array([float(effective_rank(c.values)) for c in candidates.each])
    effective = np.maximum(np.nan_to_num(effective, nan=1.0), 1.0)  # of a zero matrix, too
    weights = np.sqrt(effective / (candidates.rows + candidates.cols))
    top = (full / weights).max()
    return Family(lambda t: np.minimum(t * top * weights, full), full, candidates.names)


def alpha(candidates: Candidates, spread: float = ALPHA_SPREAD) -> Family:
    """AlphaPruning, on ranks: blocks with heavier tails lose less.

    The mean power-law exponent of a block's matrices is mapped linearly to [1 - spread,
    1 + spread], which scales what the block's matrices lose. Source: Lu et al. 2024.
    """
    held = np.array([c.matrix.block for c in candidates.each])
    exponents = np.array([power_law(np.square(relative(c.values))).alpha for c in candidates.each])
    blocks = np.unique(held)
    means = np.array([_finite_mean(exponents[held == block]) for block in blocks])
    known = np.isfinite(means)
    if not known.any():
        raise InputError("no block has a power law to fit: choose another method")
    means = np.where(known, means, means[known].mean())
    place = _scaled(means) * 2 * spread + 1 - spread
    return _removing(candidates, place[np.searchsorted(blocks, held)])


def owl(candidates: Candidates, outliers: Outliers, spread: float = OWL_SPREAD) -> Family:
    """OWL, on ranks: blocks with more outliers keep more.

    Source: Yin et al. 2023: keep = 2·spread·(D - D_min)/(D_max - D_min), centred, plus 1 - s.

    Parameters
    ----------
    candidates
        The matrices.
    outliers
        By the block's path, or its number where that tells blocks apart: D, the share of entries
        with |W|·‖x‖ above 5 times the block's mean.
    spread
        OWL's λ.
    """
    held = np.array([c.matrix.block for c in candidates.each])
    blocks = np.unique(held)
    known = _by_block(outliers, blocks.tolist())
    if missing := sorted(set(blocks.tolist()) - set(known)):
        raise InputError(f"no share of outliers for the block {missing[0]}")
    shares = np.array([known[block] for block in blocks.tolist()])
    if not ((shares >= 0) & (shares <= 1)).all():
        raise InputError(f"shares of outliers are from 0 to 1, not {shares.tolist()}")
    keep = 2 * spread * _scaled(shares)
    offset = (keep - keep.mean())[np.searchsorted(blocks, held)]
    full = candidates.full_ranks
    low, high = -offset.max(), 1 - offset.min()
    return Family(
        lambda t: full * np.clip(low + t * (high - low) + offset, 0, 1), full, candidates.names
    )


def _by_block(outliers: Outliers, blocks: list[str]) -> dict[str, float]:
    """Shares by the blocks' paths, of those that are given by number, too."""
    numbers = {block.rpartition(".")[2]: block for block in blocks}
    if len(numbers) < len(blocks) and any(str(key) in numbers for key in outliers):
        first, second = sorted(blocks, key=lambda block: int(block.rpartition(".")[2]))[:2]
        raise InputError(
            f"shares of outliers by number do not tell {first} from {second}: give them by path"
        )
    return {numbers.get(str(key), str(key)): share for key, share in outliers.items()}


def _removing(candidates: Candidates, shares: Doubles) -> Family:
    """What is removed is in proportion to shares, up to everything."""
    full = candidates.full_ranks
    most = 1 / shares.min()
    return Family(
        lambda t: full * np.clip(1 - (1 - t) * most * shares, 0, 1), full, candidates.names
    )


def _scaled(values: Doubles) -> Doubles:
    """Linearly to [0, 1]; one half where all are equal."""
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.full_like(values, 0.5)


def _finite_mean(values: Doubles) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan

"""Ranks that grow together along one scale, as in most methods.

A family maps the scale t to a real-valued rank of every matrix, which rises with t and is rounded.
A target is met by the largest scale within it. What rounding leaves over is added one rank at a
time, in the order of the matrices' names, so that the order of the input does not matter.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spectra.allocation.candidates import Candidates, Doubles, Ranks
from spectra.allocation.costs import require_storage
from spectra.allocation.methods.registry import Choose, Chosen
from spectra.allocation.pricing import Pricing
from spectra.allocation.target import Target
from spectra.storages.registry import DEFAULT_STORAGE

Measure = Callable[[Ranks], float]
BISECTIONS = 80


@dataclass(frozen=True, eq=False)
class ScaledRanks:
    """Ranks along a scale from 0 to 1."""

    wanted: Callable[[float], Doubles]
    """Real-valued ranks at a scale: (matrix,), each rising with the scale."""
    full_ranks: Ranks
    names: list[str]

    def ranks(self, scale: float) -> Ranks:
        """Ranks at a scale, rounded, from 1 to the full rank."""
        rounded = np.floor(self.wanted(scale) + 0.5).astype(np.int64)
        return np.clip(rounded, 1, self.full_ranks)

    def largest_within(self, measure: Measure, limit: float) -> Ranks | None:
        """The largest ranks whose measure stays within a limit; None if there are none.

        Parameters
        ----------
        measure
            Function of the ranks that rises with each of them.
        limit
            Largest value allowed.
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


def along(pricing: Pricing, family: ScaledRanks, of_budget: ScaledRanks | None = None) -> Choose:
    """The largest ranks of a family that stay within an ERR or a budget.

    Parameters
    ----------
    pricing
        Matrices, and how they are stored.
    family
        Family of ranks.
    of_budget
        Family of ranks for budgets; the same by default.
    """
    full = pricing.candidates.full_ranks
    by_target = {"err": family, "budget": of_budget or family}

    def kept(ranks: Ranks) -> float:
        return float(ranks.sum() / full.sum())

    def share(ranks: Ranks) -> float:
        return pricing.share(pricing.aligned(ranks))

    def choose(target: Target) -> Chosen:
        ranks = by_target[target.kind]
        if target.kind == "err":
            found = ranks.largest_within(kept, 1 - target.value + 1e-12)
            possible = (0.0, 1 - kept(ranks.ranks(0.0)))
        else:
            found = ranks.largest_within(share, target.value)
            possible = (share(ranks.ranks(0.0)), 1.0)
        if found is None:
            raise target.unreachable("the method allows", *possible)
        return Chosen(pricing.aligned(found))

    return choose


def uniform(candidates: Candidates) -> ScaledRanks:
    """The same fraction of every full rank."""
    full = candidates.full_ranks
    return ScaledRanks(lambda t: np.asarray(t * full, np.float64), full, candidates.names)


def uniform_parameters(candidates: Candidates, storage: str = DEFAULT_STORAGE) -> ScaledRanks:
    """The same fraction of every matrix's parameters; whole at 1."""
    full = candidates.full_ranks
    rows, cols, rank_of = candidates.rows, candidates.cols, require_storage(storage).rank_of

    def wanted(t: float) -> Doubles:
        if t >= 1:
            return full.astype(np.float64)
        return rank_of(rows, cols, np.asarray(t * (rows * cols), np.float64))

    return ScaledRanks(wanted, full, candidates.names)


def removing(candidates: Candidates, shares: Doubles) -> ScaledRanks:
    """Ranks of which every matrix loses a fraction in proportion to its share, up to all.

    Parameters
    ----------
    candidates
        Matrices with their spectra.
    shares
        Shares, (matrix,), more than 0.
    """
    full = candidates.full_ranks
    most = 1 / shares.min()
    return ScaledRanks(
        lambda t: full * np.clip(1 - (1 - t) * most * shares, 0, 1), full, candidates.names
    )


def scaled(values: Doubles) -> Doubles:
    """Values mapped linearly to [0, 1]; one half if all are equal."""
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.full_like(values, 0.5)

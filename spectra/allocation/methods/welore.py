"""WeLore: one threshold on normalised singular values gives every matrix its rank.

Source: Jaiswal et al., "From Low Rank Gradient Subspace Stabilization to Low-Rank Weights", section
3.3 and equation 1.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np

from spectra.allocation.candidates import Candidate, Candidates, Doubles, Ranks
from spectra.allocation.methods.registry import AllocationMethod, Choose, Chosen, MethodOptions
from spectra.allocation.pricing import Pricing
from spectra.allocation.target import Target
from spectra_data.errors import InputError

Normalisation = Literal["minmax", "max"]
GRID = np.arange(201) * 0.005
"""The thresholds that the paper tries."""
Cost = Callable[[Ranks], float]


def normalised(candidate: Candidate, normalisation: str = "minmax") -> Doubles:
    """Normalised singular values, descending: (full_rank,).

    ``minmax``: (s - s_min) / (s_max - s_min), as the reference has it; ``max``: s / s_max. Ones
    throughout where all singular values are equal, so that no threshold removes any.
    """
    s = candidate.values
    if normalisation not in ("minmax", "max"):
        raise InputError(f"no normalisation {normalisation!r}; there are: minmax, max")
    least = s[-1] if normalisation == "minmax" else 0.0
    spread = s[0] - least
    if s[0] == s[-1] or spread <= 0:
        return np.ones_like(s)
    values: Doubles = (s - least) / spread
    return values


class Thresholds:
    """Ranks by threshold: of each matrix, how many normalised values are at least as large."""

    def __init__(
        self, candidates: Candidates, *, normalisation: str = "minmax", grid: bool = False
    ) -> None:
        self._full = candidates.full_ranks
        ascending = [normalised(c, normalisation)[::-1] for c in candidates.each]
        self._ascending = ascending
        values, counts = np.unique(np.concatenate(ascending), return_counts=True)
        # between two values, so that rounding in either moves no rank
        steps = GRID if grid else np.concatenate([[0.0], (values[1:] + values[:-1]) / 2])
        self.steps: Doubles = steps.astype(np.float64)
        """Every threshold that is tried, ascending; below and at the first, nothing is removed."""
        below = np.concatenate([[0], np.cumsum(counts)])
        self.removed: Ranks = below[np.searchsorted(values, self.steps, side="left")]
        """Values below each of these, over all matrices."""

    @property
    def largest_err(self) -> float:
        """The ERR of the largest threshold."""
        return float(self.removed[-1] / self._full.sum())

    def ranks(self, threshold: float) -> Ranks:
        """(matrix,): #{normalised value >= threshold}, at least 1."""
        below = [np.searchsorted(values, threshold, side="left") for values in self._ascending]
        return np.maximum(self._full - np.array(below, np.int64), 1)

    def for_err(self, target: Target) -> float:
        """The threshold whose ERR is nearest; the smaller where two are.

        The exact one is an order statistic of all normalised values together.
        """
        err = target.value
        share = self.removed / self._full.sum()
        half_a_rank = 0.5 / self._full.sum()
        if err > self.largest_err + half_a_rank:
            raise target.unreachable("a threshold allows", 0.0, self.largest_err)
        right = min(int(np.searchsorted(share, err, side="left")), len(share) - 1)
        # of the thresholds with one and the same ERR the least, as it is one of the values
        left = int(np.searchsorted(share, share[max(right - 1, 0)], side="left"))
        nearer = left if right and err - share[left] <= share[right] - err else right
        return float(self.steps[nearer])

    def for_budget(self, target: Target, cost: Cost) -> float:
        """The smallest threshold whose map stays within a budget.

        Parameters
        ----------
        target
            The budget.
        cost
            Fraction of block parameters of a map with these ranks; falls as ranks do.
        """
        budget = target.value
        low, high = 0, len(self.steps) - 1
        least = cost(self.ranks(float(self.steps[high])))
        if least > budget:
            raise target.unreachable("a threshold allows", least)
        while low < high:
            middle = (low + high) // 2
            if cost(self.ranks(float(self.steps[middle]))) <= budget:
                high = middle
            else:
                low = middle + 1
        return float(self.steps[low])


def prepare(pricing: Pricing, options: MethodOptions, *, grid: bool = False) -> Choose:
    """See `AllocationMethod`; on the paper's grid, or between any two normalised values."""
    thresholds = Thresholds(pricing.candidates, normalisation=options.normalisation, grid=grid)

    def choose(target: Target) -> Chosen:
        cut = target.value
        if target.kind == "err":
            cut = thresholds.for_err(target)
        elif target.kind == "budget":
            cut = thresholds.for_budget(target, lambda r: pricing.share(pricing.aligned(r)))
        ranks = pricing.aligned(thresholds.ranks(cut))
        return Chosen(ranks, cut, {"normalisation": options.normalisation})

    return choose


TARGETS = ("err", "budget", "threshold")
WELORE = AllocationMethod(prepare, TARGETS, lrcs_alone=True, normalises=True)
WELORE_GRID = AllocationMethod(
    partial(prepare, grid=True), TARGETS, lrcs_alone=True, normalises=True
)

r"""The least summed relative truncation error under a budget.

Each matrix has a menu: every rank that saves parameters, and the whole matrix. Choosing one entry
of each menu under one budget is the multiple-choice knapsack problem. Its linear relaxation is
solved by walking down the lower convex hulls of all menus together, steepest step first (Sinha and
Zoltners 1979): all matrices but one get an entry of their menu. If that one is between factors and
whole, both are tried in the order of their bounds (branch and bound); if it is between two ranks,
single better entries use up the remaining parameters. If the relaxation's prices leave few other
choices, dynamic programming then solves the rest exactly. The relaxation is a lower bound, so the
largest possible distance of an answer from the optimum is always known.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spectra.allocation.candidates import Candidates, Doubles, Ranks
from spectra.allocation.costs import factored_parameters
from spectra.matrices import Matrix
from spectra.storages.registry import DEFAULT_STORAGE
from spectra_data.errors import InputError

Indices = npt.NDArray[np.int64]
EXACT_WORK = 200_000_000
"""Largest number of sums in the dynamic programme: about a second."""
OPTIMAL = 1e-12
NODES = 400
"""Largest number of branches to try."""


@dataclass(frozen=True, eq=False)
class Menu:
    """The ways to store one matrix, by falling error and rising cost; the whole matrix is last."""

    ranks: Ranks
    costs: Indices
    errors: Doubles

    def hull(self, *, whole: bool) -> Indices:
        """Entries on the lower convex hull of error over cost, with or without the last."""
        count = len(self.ranks) - (not whole)
        return _lower_hull(self.costs[:count], self.errors[:count])


@dataclass(frozen=True, eq=False)
class Choice:
    """The ranks chosen, with their error."""

    ranks: Ranks
    """(matrix,); the full rank if a matrix is left whole."""
    error: float
    """Summed relative truncation error."""
    lower_bound: float
    """Lower bound of the error of any choice within the budget."""


class State(IntEnum):
    """The decision on a matrix so far."""

    OPEN = 0
    FACTORED = 1
    WHOLE = 2


@dataclass(frozen=True, eq=False)
class Walk:
    """Solution of the relaxation, with some matrices settled."""

    chosen: Indices
    """Entry of each menu after all steps that fit."""
    spent: int
    error: float
    bound: float
    price: float
    """Error that one more parameter would save."""
    torn: int | None
    """Number of the matrix that is between factors and whole; None if there is none."""


class Menus:
    """The menus of all matrices, and the walk down their hulls.

    Errors are relative; if `squared`, they are squared and keep their proportions, which suits
    spectra that are weighted to one unit.
    """

    def __init__(
        self,
        candidates: Candidates,
        *,
        storage: str = DEFAULT_STORAGE,
        align: int = 1,
        squared: bool = False,
    ) -> None:
        errors = [c.relative_errors for c in candidates.each]
        if squared:  # tolerances are absolute
            unit = max(float(c.values[0]) for c in candidates.each) or 1.0
            errors = [c.squared_errors(unit) for c in candidates.each]
            total = sum(float(e[0]) for e in errors) or 1.0
            errors = [e * (len(errors) / total) for e in errors]
        self.each = [
            _menu(c.matrix.rows, c.matrix.cols, e, storage, align)
            for c, e in zip(candidates.each, errors, strict=True)
        ]
        self._names = candidates.names
        self._full = int(candidates.full_ranks.sum())
        self._rank_of_name = np.argsort(np.argsort(np.array(self._names)))
        self.dense = int((candidates.rows * candidates.cols).sum())
        self.least = sum(int(menu.costs[0]) for menu in self.each)
        self._steps = self._all_steps()

    def choose(self, parameters: int) -> Choice:
        """The best choice with at most this number of parameters.

        Raises
        ------
        InputError
            When even the smallest choice needs more.
        """
        if parameters < self.least:
            raise InputError(
                f"a budget of {parameters / self.dense:g} cannot be reached: "
                f"ranks allow {self.least / self.dense:.4f} to 1"
            )
        chosen, bound, price = self._searched(parameters)
        chosen, bound = self._improved(chosen, parameters, price, bound)
        ranks = np.array([m.ranks[i] for m, i in zip(self.each, chosen, strict=True)])
        error = self._error(chosen)
        return Choice(ranks, error, min(bound, error))

    def parameters_for(self, err: float) -> int:
        """The number of parameters at which the walk is nearest to an ERR.

        Raises
        ------
        InputError
            When even the smallest choice removes less.
        """
        steps = self._steps
        taken = steps.state == State.OPEN
        full = self._full
        first = sum(int(menu.ranks[0]) for menu in self.each)
        kept = np.concatenate([[first], first + np.cumsum(steps.ranks[taken])])
        removed = 1 - kept / full
        most = float(removed[0])
        if not 0 <= err <= most + 0.5 / full:
            raise InputError(
                f"an ERR of {err:g} cannot be reached: the least error under a budget allows 0 to "
                f"{most:.4f}"
            )
        nearest = int(np.abs(removed - err).argmin())
        return self.least + int(steps.costs[taken][:nearest].sum())

    def _searched(self, parameters: int) -> tuple[Indices, float, float]:
        """Branch and bound on the matrices that stay whole: best choice, bound, and price."""
        root = self._walk(np.zeros(len(self.each), np.int64), parameters)
        assert root is not None
        best = self._filled(root.chosen, parameters - root.spent)
        least = self._error(best)
        queue = [(root.bound, 0, root, np.zeros(len(self.each), np.int64))]
        settled = np.inf  # the least bound among branches that were not split further
        count = 0
        while queue and count < NODES:
            bound, _, walk, state = heapq.heappop(queue)
            if bound >= least - OPTIMAL:
                break
            if walk.torn is None:
                settled = min(settled, bound)
                continue
            for decision in (State.WHOLE, State.FACTORED):
                below = state.copy()
                below[walk.torn] = decision
                branch = self._walk(below, parameters)
                count += 1
                if branch is None or branch.bound >= least - OPTIMAL:
                    continue
                filled = self._filled(branch.chosen, parameters - branch.spent)
                if self._error(filled) < least:
                    best, least = filled, self._error(filled)
                heapq.heappush(queue, (branch.bound, count, branch, below))
        left = queue[0][0] if queue else np.inf
        return best, float(min(settled, left, least)), root.price

    def _walk(self, state: Indices, parameters: int) -> Walk | None:
        """Walk down the hulls until the budget is spent; None if the settled matrices exceed it."""
        whole = state == State.WHOLE
        chosen = np.where(whole, self._lasts, 0)
        spent = int(np.where(whole, self._whole_costs, self._least_costs).sum())
        if spent > parameters:
            return None
        steps = self._steps
        active = np.flatnonzero(steps.state == state[steps.owners])
        total = spent + np.cumsum(steps.costs[active])
        count = int(np.searchsorted(total, parameters, side="right"))
        taken = active[:count]
        chosen[steps.owners[taken]] = steps.entries[taken]  # the last one per owner remains
        error = float(np.where(whole, 0.0, self._first_errors).sum() - steps.gains[taken].sum())
        if count == len(active):
            spent = int(total[-1]) if count else spent
            return Walk(chosen, spent, error, error, 0.0, None)
        spent = int(total[count - 1]) if count else spent
        torn = int(active[count])
        price = float(steps.gains[torn] / steps.costs[torn])
        owner = int(steps.owners[torn])
        leap = bool(steps.entries[torn] == self._lasts[owner])
        bound = error - price * (parameters - spent)
        return Walk(chosen, spent, error, bound, price, owner if leap else None)

    def _all_steps(self) -> "Steps":
        """Every step of every hull, with and without the last entry, steepest first."""
        self._lasts = np.array([len(menu.ranks) - 1 for menu in self.each])
        self._least_costs = np.array([int(menu.costs[0]) for menu in self.each])
        self._whole_costs = np.array([int(menu.costs[-1]) for menu in self.each])
        self._first_errors = np.array([float(menu.errors[0]) for menu in self.each])
        found = [
            _steps(number, menu, state)
            for number, menu in enumerate(self.each)
            for state in (State.OPEN, State.FACTORED)
        ]
        columns = [np.concatenate(column) for column in zip(*found, strict=True)]
        owners, entries, _, costs, gains, _ = columns
        # ties by name, so that the order of matrices does not matter
        order = np.lexsort((entries, self._rank_of_name[owners], -gains / costs))
        return Steps(*(column[order] for column in columns))

    def _error(self, chosen: Indices) -> float:
        return float(sum(m.errors[i] for m, i in zip(self.each, chosen, strict=True)))

    def _filled(self, chosen: Indices, left: int) -> Indices:
        """Spend the remaining parameters on the entries that save the most error, one at a time."""
        chosen = chosen.copy()
        while True:
            best, gain = None, 0.0
            for number in sorted(range(len(self.each)), key=lambda n: self._names[n]):
                menu, now = self.each[number], chosen[number]
                last = int(np.searchsorted(menu.costs, menu.costs[now] + left, side="right")) - 1
                saved = float(menu.errors[now] - menu.errors[last])
                if saved > gain:
                    best, gain = (number, last), saved
            if best is None:
                return chosen
            number, last = best
            left -= int(self.each[number].costs[last] - self.each[number].costs[chosen[number]])
            chosen[number] = last

    def _improved(
        self, chosen: Indices, parameters: int, price: float, bound: float
    ) -> tuple[Indices, float]:
        """The optimum, by dynamic programming over the entries it can contain, if these are few."""
        best = self._error(chosen)
        gap = best - bound
        if gap <= OPTIMAL * max(best, 1.0):
            return chosen, bound
        # at any price, an entry worse than the best one by the gap is in no better choice
        reduced = [menu.errors + price * menu.costs for menu in self.each]
        relaxed = sum(float(r.min()) for r in reduced) - price * parameters
        gap = best - relaxed
        kept = [np.flatnonzero(r - r.min() <= gap * (1 + 1e-9)) for r in reduced]
        fixed = sum(int(m.costs[k[0]]) for m, k in zip(self.each, kept, strict=True))
        weights = [(m.costs[k] - m.costs[k[0]]) for m, k in zip(self.each, kept, strict=True)]
        unit = int(np.gcd.reduce(np.concatenate(weights))) or 1
        room = min((parameters - fixed) // unit, sum(int(w[-1]) // unit for w in weights))
        if room < 0 or sum(map(len, kept)) * (room + 1) > EXACT_WORK:
            return chosen, bound
        errors = [m.errors[k] for m, k in zip(self.each, kept, strict=True)]
        entries = _knapsack([w // unit for w in weights], errors, room)
        found = np.array([k[i] for k, i in zip(kept, entries, strict=True)])
        better = found if self._error(found) < best - OPTIMAL else chosen
        return better, self._error(better)


class Steps(NamedTuple):
    """Steps down hulls: (step,) each."""

    owners: Indices
    """Number of the matrix whose hull it is."""
    entries: Indices
    """Entry of the menu to which the step leads."""
    state: Indices
    """`State` of the matrix in which the step is possible."""
    costs: Indices
    """Parameters added."""
    gains: Doubles
    """Error removed."""
    ranks: Indices
    """Ranks added."""


def parameters_within(budget: float, dense: int) -> int:
    """The most parameters within a budget, a fraction of the dense ones."""
    return int(budget * dense + 1e-6)


def least_parameters(matrices: Iterable[Matrix], storage: str, align: int) -> int:
    """The fewest parameters of matrices, with every rank a multiple of `align`."""
    return sum(int(_costs(m.rows, m.cols, storage, align)[1][0]) for m in matrices)


def _costs(rows: int, cols: int, storage: str, align: int) -> tuple[Ranks, Indices]:
    """The ranks that save parameters, and their parameters; the whole matrix is last."""
    full = min(rows, cols)
    ranks = np.arange(align, full, align) if align < full else np.empty(0, np.int64)
    costs = factored_parameters(rows, cols, ranks, storage)
    saving = costs < rows * cols
    return np.append(ranks[saving], full), np.append(costs[saving], rows * cols)


def _menu(rows: int, cols: int, errors: Doubles, storage: str, align: int) -> Menu:
    ranks, costs = _costs(rows, cols, storage, align)
    lost = np.append(errors[ranks[:-1]], 0.0)
    worth = np.append(np.diff(lost) < 0, True)  # of equal errors, the cheapest
    first = np.concatenate([[True], worth[:-1]])
    ranks, costs, lost = ranks[first], costs[first], lost[first]
    return Menu(ranks, costs, lost)


def _lower_hull(x: Indices, y: Doubles) -> Indices:
    """Indices of the lower convex hull of points with rising x (Andrew's monotone chain)."""
    kept: list[int] = []
    xs, ys = x.tolist(), y.tolist()
    for i in range(len(xs)):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            if (ys[b] - ys[a]) * (xs[i] - xs[a]) < (ys[i] - ys[a]) * (xs[b] - xs[a]):
                break
            kept.pop()
        kept.append(i)
    return np.array(kept, np.int64)


def _steps(number: int, menu: Menu, state: int) -> "Steps":
    """The steps down the hull of an open or of a factored matrix."""
    hull = menu.hull(whole=state == State.OPEN)
    count = max(len(hull) - 1, 0)
    return Steps(
        np.full(count, number),
        hull[1:],
        np.full(count, int(state)),
        np.diff(menu.costs[hull]),
        -np.diff(menu.errors[hull]),
        np.diff(menu.ranks[hull]),
    )


def _knapsack(weights: Sequence[Indices], errors: Sequence[Doubles], room: int) -> list[int]:
    """One entry of each menu: the least summed error within the room."""
    best = np.zeros(room + 1)
    tables = []
    for weight, error in zip(weights, errors, strict=True):
        new = np.full(room + 1, np.inf)
        entry = np.zeros(room + 1, np.int16)
        for i, (w, e) in enumerate(zip(weight.tolist(), error.tolist(), strict=True)):
            if w > room:
                break
            total = best[: room + 1 - w] + e
            better = total < new[w:]
            new[w:][better] = total[better]
            entry[w:][better] = i
        best = new
        tables.append(entry)
    chosen, left = [], room
    for entry, weight in zip(reversed(tables), reversed(weights), strict=True):
        i = int(entry[left])
        chosen.append(i)
        left -= int(weight[i])
    return chosen[::-1]

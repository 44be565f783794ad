"""`allocate`: a rank map that meets a target, by any of the methods."""

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from spectra.allocation import families
from spectra.allocation.budget import Menus
from spectra.allocation.candidates import Candidates, Ranks, candidates_of
from spectra.allocation.costs import factored_parameters, require_storage
from spectra.allocation.families import Family, Outliers
from spectra.allocation.rankmap import LRC_FACTOR, TARGETS, Model, Module, RankMap, kind_of
from spectra.allocation.welore import Thresholds
from spectra.storages.registry import DEFAULT_STORAGE
from spectra.store.reader import open_store
from spectra_data.errors import InputError

METHODS = ("welore", "welore-grid", "uniform", "owl", "alpha", "d-rank", "budget")
LOSS = "loss"
"""Of candidates whose spectra are weighted by what they do to the loss (`spectra.compression`)."""


def allocate(
    run: "xr.DataTree | Candidates | str | Path",
    *,
    err: float | None = None,
    budget: float | None = None,
    threshold: float | None = None,
    method: str = "welore",
    normalisation: str = "minmax",
    lrc_factor: float = LRC_FACTOR,
    storage: str = DEFAULT_STORAGE,
    align: int = 1,
    outliers: Outliers | None = None,
    step: int | None = None,
) -> RankMap:
    """Give every matrix a rank.

    Parameters
    ----------
    run
        A scan or a run, opened or by its address.
    err
        Effective rank reduction to reach: removed ranks over all ranks.
    budget
        Fraction of block parameters to stay within.
    threshold
        WeLore's cut on normalised singular values. One of these three is given.
    method
        ``welore``: the threshold that the target needs, exactly; ``welore-grid``: the nearest on
        the paper's grid of 0.005. ``uniform``: the same fraction of every full rank, or for a
        budget of every matrix' parameters. ``owl``, ``alpha`` (AlphaPruning) and ``d-rank``: see
        `families`. ``budget``: least summed relative truncation error, see `budget`.
    normalisation
        WeLore's: ``minmax``, as the reference has it, or ``max``.
    lrc_factor
        A matrix is an LRC when its rank is less than this times its full rank.
    storage
        What a factored matrix is stored as: one of `STORAGES`.
    align
        Ranks of factored matrices are multiples of this.
    outliers
        For ``owl``: by block, the share of outliers (`spectra.allocation.outliers`).
    step
        Which snapshot; the last by default.

    Returns
    -------
    A map that states target, threshold, ERR and budget. Factored are, by ``welore``, the LRCs; by
    the others, all matrices; where factors have fewer parameters, which those of LRCs always have
    unless the rule's factor is above a half.

    Raises
    ------
    InputError
        When the target is impossible: the message says what is possible.
    """
    candidates = run if isinstance(run, Candidates) else _candidates(run, step)
    target, value = _target({"err": err, "budget": budget, "threshold": threshold}, method)
    require_storage(storage)
    if operator.index(align) < 1:
        raise InputError(f"ranks are multiples of 1 or more, not of {align}")
    if not 0 < lrc_factor <= 1:
        raise InputError(f"the LRC rule's factor is in (0, 1], not {lrc_factor:g}")
    made = Maker(candidates, method, normalisation, lrc_factor, storage, align, outliers)
    ranks, cut = made.ranks(target, value)
    asked = dict.fromkeys(TARGETS) | {target: value}
    return made.map(ranks, cut, asked)


class Maker:
    """Rank maps of one method and its settings, for any targets."""

    def __init__(
        self,
        candidates: Candidates,
        method: str = "welore",
        normalisation: str = "minmax",
        lrc_factor: float = LRC_FACTOR,
        storage: str = DEFAULT_STORAGE,
        align: int = 1,
        outliers: Outliers | None = None,
    ) -> None:
        if method not in (*METHODS, LOSS):
            raise InputError(f"no method {method!r}; there are: {', '.join(METHODS)}")
        self.candidates = candidates
        self.method = method
        self.lrc_factor = lrc_factor
        self.storage = storage
        self.align = align
        self.options: dict[str, Any] = {"lrc_factor": lrc_factor, "align": align}
        self.dense = candidates.rows * candidates.cols
        if self.thresholded:
            self.options["normalisation"] = normalisation
            grid = method == "welore-grid"
            self._thresholds = Thresholds(candidates, normalisation=normalisation, grid=grid)
        elif self.searched:
            self._menus = Menus(candidates, storage=storage, align=align, squared=method == LOSS)
        else:
            self._families = _families(candidates, method, storage, outliers)
            if outliers is not None:
                self.options["outliers"] = {str(layer): float(d) for layer, d in outliers.items()}

    @property
    def thresholded(self) -> bool:
        """Whether the method has a threshold."""
        return self.method.startswith("welore")

    @property
    def searched(self) -> bool:
        """Whether ranks are those of the least error under a budget."""
        return self.method in ("budget", LOSS)

    def ranks(self, target: str, value: float) -> tuple[Ranks, float | None]:
        """Ranks that meet a target, and the threshold behind them."""
        if self.thresholded:
            cut = self._cut(target, value)
            return self._aligned(self._thresholds.ranks(cut)), cut
        if self.searched:
            return self._least_error(target, value), None
        return self._of_family(target, value), None

    def factored(self, ranks: Ranks) -> "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]":
        """Which matrices are stored as factors: (matrix,)."""
        full = self.candidates.full_ranks
        low = ranks < (self.lrc_factor * full if self.thresholded else full)
        return low & (self._in_factors(ranks) < self.dense)

    def parameters(self, ranks: Ranks) -> Ranks:
        """Parameters of each matrix as stored: (matrix,)."""
        return np.where(self.factored(ranks), self._in_factors(ranks), self.dense)

    def map(self, ranks: Ranks, cut: float | None, asked: Mapping[str, float | None]) -> RankMap:
        """The map of given ranks."""
        factored, stored = self.factored(ranks), self.parameters(ranks)
        errors = np.where(factored, self.candidates.relative_errors(ranks), 0.0)
        full = self.candidates.full_ranks
        modules = [
            Module(
                c.matrix.name, c.matrix.layer, c.matrix.role, c.matrix.rows, c.matrix.cols,
                c.full_rank, int(ranks[i]), kind_of(int(ranks[i]), c.full_rank, self.lrc_factor),
                bool(factored[i]), float(errors[i]), int(self.dense[i]), int(stored[i]),
            )
            for i, c in enumerate(self.candidates.each)
        ]  # fmt: skip
        return RankMap(
            Model(**self.candidates.model),
            self.method,
            cut,
            self.storage,
            float((full - ranks).sum() / full.sum()),
            float(stored.sum() / self.dense.sum()),
            tuple(modules),
            asked,
            self.options,
            self.candidates.format,
            self.candidates.approximate,
            self.candidates.fused,
        )

    def _in_factors(self, ranks: Ranks) -> Ranks:
        return factored_parameters(self.candidates.rows, self.candidates.cols, ranks, self.storage)

    def _share(self, ranks: Ranks) -> float:
        return float(self.parameters(ranks).sum() / self.dense.sum())

    def _kept(self, ranks: Ranks) -> float:
        return float(ranks.sum() / self.candidates.full_ranks.sum())

    def _aligned(self, ranks: Ranks) -> Ranks:
        """Ranks of factored matrices rounded down to multiples; the others as they are."""
        if self.align == 1:
            return ranks
        least = np.minimum(self.align, self.candidates.full_ranks)
        down = np.maximum(ranks // self.align * self.align, least)
        return np.where(self.factored(ranks), np.minimum(down, ranks.clip(least)), ranks)

    def _cut(self, target: str, value: float) -> float:
        if target == "err":
            return self._thresholds.for_err(value)
        if target == "budget":
            return self._thresholds.for_budget(value, lambda r: self._share(self._aligned(r)))
        if not 0 <= value <= 1:
            raise InputError(f"a threshold is from 0 to 1, not {value:g}")
        return value

    def _of_family(self, target: str, value: float) -> Ranks:
        family = self._families[target]
        if target == "err":
            found = family.largest_within(self._kept, 1 - value + 1e-12)
            possible = f"0 to {1 - self._kept(family.ranks(0.0)):.4f}"
        else:
            found = family.largest_within(lambda ranks: self._share(self._aligned(ranks)), value)
            possible = f"{self._share(self._aligned(family.ranks(0.0))):.4f} to 1"
        if found is None or not 0 <= value <= 1:
            what = "an ERR" if target == "err" else "a budget"
            raise InputError(
                f"{what} of {value:g} cannot be reached: {self.method} gives {possible}"
            )
        return self._aligned(found)

    def _least_error(self, target: str, value: float) -> Ranks:
        if target == "budget":
            if value > 1:
                raise InputError(f"a budget is a fraction of the parameters, not {value:g}")
            choice = self._menus.choose(int(value * self._menus.dense + 1e-6))
            self.options["summed_error"] = choice.error
            self.options["lower_bound"] = choice.lower_bound
            return choice.ranks
        return self._menus.choose(self._menus.parameters_for(value)).ranks


def _families(
    candidates: Candidates, method: str, storage: str, outliers: Outliers | None
) -> Mapping[str, Family]:
    """Ranks along a scale, by what the target is."""
    if method == "uniform":
        of_parameters = families.uniform_parameters(candidates, storage)
        return {"err": families.uniform(candidates), "budget": of_parameters}
    if method == "owl":
        if outliers is None:
            raise InputError(
                "owl needs the share of outliers of every layer, which takes activations: give "
                "outliers="
            )
        family = families.owl(candidates, outliers)
    else:
        family = families.alpha(candidates) if method == "alpha" else families.d_rank(candidates)
    return {"err": family, "budget": family}


def _target(given: Mapping[str, float | None], method: str) -> tuple[str, float]:
    named = [(name, float(value)) for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise InputError("name one target: an ERR, a budget, or a threshold")
    target, value = named[0]
    if not np.isfinite(value):
        raise InputError(f"{target} is a number, not {value}")
    require_target(target, method)
    return target, value


def require_target(target: str, method: str) -> None:
    """Require a target that the method knows.

    Raises
    ------
    InputError
        With those that it does.
    """
    if target not in TARGETS:
        raise InputError(f"no target {target!r}; there are: {', '.join(TARGETS)}")
    if target == "threshold" and not method.startswith("welore"):
        raise InputError(f"a threshold is WeLore's; for {method}, name an ERR or a budget")


def _candidates(run: xr.DataTree | str | Path, step: int | None) -> Candidates:
    return candidates_of(run if isinstance(run, xr.DataTree) else open_store(run), step)

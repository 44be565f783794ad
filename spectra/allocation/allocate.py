"""`allocate`: a rank map that meets a target, by any of the methods."""

from typing import Any

import numpy as np

from spectra.allocation.candidates import Candidates, Ranks, candidates_of
from spectra.allocation.methods.registry import METHODS, NEEDS, Chosen, MethodOptions, Outliers
from spectra.allocation.options import Allocation, AllocationSettings
from spectra.allocation.pricing import Flags, Pricing
from spectra.allocation.rankmap import Model, Module, RankMap, kind_of
from spectra.allocation.target import Target
from spectra.keywords import completed, spelled_out
from spectra.store.reader import Store, takes_store
from spectra_data.errors import InputError


@spelled_out(Allocation)
def allocate(
    run: Store | Candidates,
    allocation: Allocation | None = None,
    *,
    outliers: Outliers | None = None,
    step: int | None = None,
    **keywords: Any,
) -> RankMap:
    """Choose a rank for every matrix.

    Parameters
    ----------
    run
        A scan or a run, opened or by its address.
    allocation
        Target and method; or pass its fields as keywords, listed below.
    outliers
        Share of outliers by block, for ``owl`` (`spectra.calibration.outliers`).
    step
        Step of the snapshot; the last by default.
    **keywords
        Fields of `Allocation`.

    Returns
    -------
    A map that states target, threshold, ERR and budget. ``welore`` factors the LRCs, the other
    methods all matrices, but only those whose factors have fewer parameters. Those of LRCs always
    do unless the rule's factor exceeds a half.

    Raises
    ------
    InputError
        When the target is impossible: the message states the possible range.
    """
    allocation = completed(Allocation, allocation, keywords)
    candidates = run if isinstance(run, Candidates) else takes_store(candidates_of)(run, step)
    return Maker(candidates, allocation, outliers).map(allocation.target)


class Maker:
    """Makes rank maps for any targets by one method with its settings.

    Parameters
    ----------
    candidates
        Matrices with their spectra.
    settings
        Method, storage and so on.
    outliers
        See `allocate`.

    Raises
    ------
    InputError
        When the method is unknown, lacks an input that it needs or would ignore one that is given,
        or a setting is invalid.
    """

    def __init__(
        self, candidates: Candidates, settings: AllocationSettings, outliers: Outliers | None = None
    ) -> None:
        self.candidates = candidates
        self.method = settings.method
        self.kind = METHODS[self.method]
        given = {"outliers": outliers is not None, "statistics": candidates.weighted}
        for need in self.kind.needs:
            if not given[need]:
                raise InputError(f"{self.method} needs {NEEDS[need]}")
        self._require_nothing_unused(settings, outliers)
        self.pricing = Pricing(
            candidates,
            settings.storage,
            settings.align,
            settings.lrc_factor,
            self.kind.lrcs_alone,
        )
        options = MethodOptions(settings.normalisation, outliers)
        self._choose = self.kind.prepare(self.pricing, options)

    def _require_nothing_unused(
        self, settings: AllocationSettings, outliers: Outliers | None
    ) -> None:
        """Require that nothing is given that the method would ignore."""
        if outliers is not None and "outliers" not in self.kind.needs:
            raise InputError(f"{self.method} counts no outliers: leave them out")
        if settings.normalisation != AllocationSettings.normalisation and not self.kind.normalises:
            raise InputError(
                f"{self.method} does not normalise singular values: leave normalisation out"
            )

    def choose(self, target: Target) -> Chosen:
        """Ranks that meet a target.

        Raises
        ------
        InputError
            When the method does not accept the target, or it is impossible: the message states the
            possible range.
        """
        self.kind.require(self.method, target)
        return self._choose(target)

    def factored(self, ranks: Ranks) -> Flags:
        """Which matrices are stored as factors: (matrix,)."""
        return self.pricing.factored(ranks)

    def parameters(self, ranks: Ranks) -> Ranks:
        """Parameters of each matrix as stored: (matrix,)."""
        return self.pricing.parameters(ranks)

    def map(self, target: Target) -> RankMap:
        """The map that meets a target.

        Raises
        ------
        InputError
            See `choose`.
        """
        chosen, terms = self.choose(target), self.pricing
        ranks, dense, factor = chosen.ranks, terms.dense, terms.lrc_factor
        factored, stored = terms.factored(ranks), terms.parameters(ranks)
        errors = np.where(factored, self.candidates.relative_errors(ranks), 0.0)
        full = self.candidates.full_ranks
        modules = [
            Module(
                c.matrix.name, c.matrix.layer, c.matrix.role, c.matrix.rows, c.matrix.cols,
                c.full_rank, int(ranks[i]), kind_of(int(ranks[i]), c.full_rank, factor),
                bool(factored[i]), float(errors[i]), int(dense[i]), int(stored[i]),
            )
            for i, c in enumerate(self.candidates.each)
        ]  # fmt: skip
        return RankMap(
            Model(**self.candidates.model),
            self.method,
            chosen.threshold,
            terms.storage,
            float((full - ranks).sum() / full.sum()),
            float(stored.sum() / dense.sum()),
            tuple(modules),
            target.asked(),
            {"lrc_factor": factor, "align": terms.align, **chosen.options},
            self.candidates.format,
            self.candidates.approximate,
            self.candidates.fused,
        )

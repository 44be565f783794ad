"""The methods of `spectra allocate --method`, and those that compression uses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from spectra.allocation.candidates import Ranks
from spectra.allocation.pricing import Pricing
from spectra.allocation.target import KINDS, Target
from spectra.registry import Entry, Registry
from spectra_data.errors import InputError

DEFAULT = "welore"
LOSS = "loss"
Need = Literal["outliers", "statistics"]
NEEDS: Mapping[Need, str] = {
    "outliers": "the share of outliers of every layer, which needs activations: pass outliers=",
    "statistics": "spectra that are weighted by the statistics of a text: `spectra compress "
    "--budget` makes them",
}
"""Inputs that a method may need besides the spectra, and how to provide them."""
Outliers = Mapping[str, float] | Mapping[int, float]
"""Shares of outliers, by the path of a block or its number."""


@dataclass(frozen=True)
class MethodOptions:
    """Settings of individual methods; each reads its own."""

    normalisation: str = "minmax"
    """Normalisation of singular values by WeLore: ``minmax`` or ``max``."""
    outliers: Outliers | None = None
    """Share of outliers by block (`spectra.calibration.outliers`)."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Ranks that meet a target."""

    ranks: Ranks
    """(matrix,)."""
    threshold: float | None = None
    """Threshold behind the ranks; None if the method has none."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings and results of the method, for the map."""


Choose = Callable[[Target], Chosen]


@dataclass(frozen=True)
class AllocationMethod:
    """A method: its targets and inputs, and how it turns spectra into ranks."""

    prepare: Callable[[Pricing, MethodOptions], Choose]
    """Maps matrices and their storage to a function that returns ranks for a target. Does the work
    that all targets share once."""
    targets: tuple[str, ...] = ("err", "budget")
    """Kinds of targets that it accepts."""
    needs: tuple[Need, ...] = ()
    """Inputs that it needs besides the spectra."""
    lrcs_alone: bool = False
    """Whether only LRCs are factored, and N-LRCs stay whole; else every matrix is factored whose
    factors are smaller than the matrix."""
    normalises: bool = False
    """Whether it reads singular values normalised, in the way that the settings name."""
    searched: tuple[str, ...] = ()
    """Kinds of targets that need a search each, which takes some hundred times as long: sliders
    have fewer of these."""

    def require(self, name: str, target: Target) -> None:
        """Require a target that the method of this name accepts.

        Raises
        ------
        InputError
            With those that it accepts.
        """
        if target.kind not in self.targets:
            other = KINDS[target.kind]
            raise InputError(
                f"{other.noun} is {other.meaning}; for {name}, name "
                f"{' or '.join(KINDS[kind].noun for kind in self.targets)}"
            )


_HERE = "spectra.allocation.methods"
METHODS: Registry[AllocationMethod] = Registry(
    "method",
    {
        "welore": Entry(
            "one threshold for all matrices, exactly the one that the target needs",
            f"{_HERE}.welore:WELORE",
        ),
        "welore-grid": Entry(
            "the nearest threshold on the paper's grid of 0.005", f"{_HERE}.welore:WELORE_GRID"
        ),
        "uniform": Entry("the same fraction of every matrix", f"{_HERE}.uniform:UNIFORM"),
        "owl": Entry("blocks with more outliers keep more", f"{_HERE}.owl:OWL"),
        "alpha": Entry("AlphaPruning: blocks with heavier tails lose less", f"{_HERE}.alpha:ALPHA"),
        "d-rank": Entry("ranks by effective rank and cost", f"{_HERE}.d_rank:D_RANK"),
        "budget": Entry("the least summed truncation error", f"{_HERE}.least_error:BUDGET"),
        LOSS: Entry("the least expected loss", f"{_HERE}.least_error:LOSS"),
    },
)


def offered(*given: Need) -> tuple[str, ...]:
    """Names of the methods that need no other inputs besides the spectra."""
    return tuple(name for name in METHODS if set(METHODS[name].needs) <= set(given))

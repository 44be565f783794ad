"""The methods that `--method` of `spectra allocate` names, and those that compression uses."""

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
    "outliers": "the share of outliers of every layer, which takes activations: give outliers=",
    "statistics": "spectra that statistics of a text have weighted: `spectra compress --budget` "
    "makes them",
}
"""What a method can need beside the spectra, and how to give it."""
Outliers = Mapping[str, float] | Mapping[int, float]
"""Shares of outliers, by the path of a block or its number."""


@dataclass(frozen=True)
class MethodOptions:
    """Settings of single methods; each reads its own."""

    normalisation: str = "minmax"
    """How WeLore normalises singular values: ``minmax`` or ``max``."""
    outliers: Outliers | None = None
    """By block, the share of outliers (`spectra.calibration.outliers`)."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Ranks that meet a target."""

    ranks: Ranks
    """(matrix,)."""
    threshold: float | None = None
    """The threshold behind them, of a method that has one."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the map says of the method's own settings and result."""


Choose = Callable[[Target], Chosen]


@dataclass(frozen=True)
class AllocationMethod:
    """A method: what it takes, and how it comes from spectra to ranks."""

    prepare: Callable[[Pricing, MethodOptions], Choose]
    """From the matrices, and how they are stored, to a function that gives ranks for a target. Work
    that is the same for all targets is done once, here."""
    targets: tuple[str, ...] = ("err", "budget")
    """The kinds of targets that it takes."""
    needs: tuple[Need, ...] = ()
    """What it needs beside the spectra."""
    lrcs_alone: bool = False
    """Whether LRCs alone are factored, and N-LRCs stay whole; else all whose factors are smaller
    than they are."""
    searched: tuple[str, ...] = ()
    """Targets that take a search each, some hundred times as long: sliders have fewer of them."""

    def require(self, name: str, target: Target) -> None:
        """Require a target that the method, which has this name, takes.

        Raises
        ------
        InputError
            With those that it takes.
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
    """Names of the methods that need no more than this beside the spectra."""
    return tuple(name for name in METHODS if set(METHODS[name].needs) <= set(given))

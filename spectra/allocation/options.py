"""What an allocation is asked for: options of `allocate` and of the commands."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from spectra.allocation.methods.registry import DEFAULT, METHODS, Need, offered
from spectra.allocation.pricing import LRC_FACTOR
from spectra.allocation.target import TargetOptions
from spectra.storages.registry import DEFAULT_STORAGE, STORAGES

GIVEN: tuple[Need, ...] = ("outliers",)
"""What the command can give a method beside the spectra."""


@dataclass(frozen=True, kw_only=True)
class AllocationSettings:
    """The way from spectra to ranks, whatever the target.

    Parameters
    ----------
    method
        Method that gives the ranks, e.g. welore: the threshold that the target needs. One of
        `METHODS`; docs/allocation.md describes them.
    normalisation
        Normalisation of singular values, for welore: from the least to the largest, as the
        reference has it, or by the largest.
    lrc_factor
        Fraction of its full rank below which a matrix is an LRC.
    storage
        Storage of factored matrices: one of `STORAGES`.
    align
        Number that ranks of factored matrices are multiples of, e.g. 8 or 16.
    """

    method: Annotated[
        str,
        tyro.conf.arg(
            constructor_factory=lambda: Literal[offered(*GIVEN)],
            help="Method that gives the ranks.",
            help_behavior_hint=lambda default: (
                f"{METHODS.help(offered(*GIVEN))}. (default: {default})"
            ),
        ),
    ] = DEFAULT
    normalisation: Literal["minmax", "max"] = "minmax"
    lrc_factor: float = LRC_FACTOR
    storage: Annotated[
        str,
        tyro.conf.arg(
            metavar=f"{{{','.join(STORAGES)}}}",
            help=f"Storage of factored matrices. {STORAGES.help()}.",
        ),
    ] = DEFAULT_STORAGE
    align: int = 1


@dataclass(frozen=True, kw_only=True)
class Allocation(AllocationSettings, TargetOptions):
    """A target, and the way to ranks that meet it."""

"""Options of an allocation, for `allocate` and for the commands."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from spectra.allocation.methods.registry import DEFAULT, METHODS, Need, offered
from spectra.allocation.pricing import LRC_FACTOR
from spectra.allocation.target import TargetOptions
from spectra.keywords import Share
from spectra.storages.registry import DEFAULT_STORAGE, STORAGES

PATH_SPACING = 0.005
"""Default spacing of points of ERR on a compression path."""
GIVEN: tuple[Need, ...] = ("outliers",)
"""Inputs besides the spectra that the command can provide to a method."""


@dataclass(frozen=True, kw_only=True)
class AllocationSettings:
    """Settings of an allocation, for any target.

    Parameters
    ----------
    method
        Method that chooses the ranks, e.g. welore: one threshold that meets the target. One of
        `METHODS`; docs/allocation.md describes them.
    normalisation
        Normalisation of singular values for welore: by least and largest value, as in the
        reference (minmax), or by the largest (max).
    lrc_factor
        Fraction of the full rank below which a matrix is an LRC.
    storage
        Storage of factored matrices: one of `STORAGES`.
    align
        Multiple to which ranks of factored matrices are rounded down, e.g. 8 or 16.
    """

    method: Annotated[
        str,
        tyro.conf.arg(
            constructor_factory=lambda: Literal[offered(*GIVEN)],
            help="Method that chooses the ranks.",
            help_behavior_hint=lambda default: (
                f"{METHODS.help(offered(*GIVEN))}. (default: {default})"
            ),
        ),
    ] = DEFAULT
    normalisation: Literal["minmax", "max"] = "minmax"
    lrc_factor: Share = LRC_FACTOR
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
    """A target, and the settings to reach it."""

"""AlphaPruning, on ranks: blocks with heavier tails lose less.

Source: Lu et al. 2024, "AlphaPruning".
"""

import numpy as np

from spectra.allocation.candidates import Candidates, Doubles
from spectra.allocation.methods.registry import AllocationMethod, Choose, MethodOptions
from spectra.allocation.methods.scaled_ranks import ScaledRanks, along, removing, scaled
from spectra.allocation.pricing import Pricing
from spectra.metrics.spectrum import relative
from spectra.metrics.tails import power_law
from spectra_data.errors import InputError

SPREAD = 0.3
"""Spread of the loss: blocks lose 1 - spread to 1 + spread times the mean."""


def alpha(candidates: Candidates, spread: float = SPREAD) -> ScaledRanks:
    """Ranks of AlphaPruning.

    The mean power-law exponent of a block's matrices is mapped linearly to [1 - spread,
    1 + spread], the factor by which the block's matrices lose.

    Raises
    ------
    InputError
        When no block has a power law.
    """
    held = np.array([c.matrix.block for c in candidates.each])
    exponents = np.array([power_law(np.square(relative(c.values))).alpha for c in candidates.each])
    blocks = np.unique(held)
    means = np.array([_finite_mean(exponents[held == block]) for block in blocks])
    known = np.isfinite(means)
    if not known.any():
        raise InputError("no block has a power law to fit: choose another method")
    means = np.where(known, means, means[known].mean())
    shares = scaled(means) * 2 * spread + 1 - spread
    return removing(candidates, shares[np.searchsorted(blocks, held)])


def _finite_mean(values: Doubles) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan


def prepare(pricing: Pricing, options: MethodOptions) -> Choose:
    """See `AllocationMethod`."""
    return along(pricing, alpha(pricing.candidates))


ALPHA = AllocationMethod(prepare)

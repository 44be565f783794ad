r"""D-Rank: ranks in proportion to :math:`\sqrt{\text{effective rank} / \text{cost}}`, up to full.

Source: D-Rank (layer-wise dynamic rank); the effective rank is that of Roy and Vetterli, and
the cost of a rank is the sum of the matrix's sides.
"""

import numpy as np

from spectra.allocation.candidates import Candidates
from spectra.allocation.methods.registry import AllocationMethod, Choose, MethodOptions
from spectra.allocation.methods.scaled_ranks import ScaledRanks, along
from spectra.allocation.pricing import Pricing
from spectra.metrics.ranks import effective_rank


def d_rank(candidates: Candidates) -> ScaledRanks:
    """Ranks of D-Rank."""
    full = candidates.full_ranks
    effective = np.array([float(effective_rank(c.values)) for c in candidates.each])
    effective = np.maximum(np.nan_to_num(effective, nan=1.0), 1.0)  # also for a zero matrix
    weights = np.sqrt(effective / (candidates.rows + candidates.cols))
    top = (full / weights).max()
    return ScaledRanks(lambda t: np.minimum(t * top * weights, full), full, candidates.names)


def prepare(pricing: Pricing, options: MethodOptions) -> Choose:
    """See `AllocationMethod`."""
    return along(pricing, d_rank(pricing.candidates))


D_RANK = AllocationMethod(prepare)

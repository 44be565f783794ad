"""OWL, on ranks: blocks with more outliers keep more.

Source: Yin et al. 2023, "Outlier Weighed Layerwise Sparsity".
"""

import numpy as np

from spectra.allocation.candidates import Candidates
from spectra.allocation.methods.registry import (
    AllocationMethod,
    Choose,
    Chosen,
    MethodOptions,
    Outliers,
)
from spectra.allocation.methods.scaled_ranks import ScaledRanks, along, scaled
from spectra.allocation.pricing import Pricing
from spectra.allocation.target import Target
from spectra_data.errors import InputError

SPREAD = 0.08
"""OWL's λ."""


def owl(candidates: Candidates, outliers: Outliers, spread: float = SPREAD) -> ScaledRanks:
    """Ranks of OWL: keep = 2·spread·(D - D_min)/(D_max - D_min), centred, plus 1 - s.

    Parameters
    ----------
    candidates
        Matrices with their spectra.
    outliers
        D, the share of entries with |W|·‖x‖ above 5 times the block's mean, by the block's path,
        or by its number if that is unique.
    spread
        OWL's λ.

    Raises
    ------
    InputError
        When a block has no share, or one outside [0, 1].
    """
    held = np.array([c.matrix.block for c in candidates.each])
    blocks = np.unique(held)
    known = _by_block(outliers, blocks.tolist())
    if missing := sorted(set(blocks.tolist()) - set(known)):
        raise InputError(f"no share of outliers for the block {missing[0]}")
    shares = np.array([known[block] for block in blocks.tolist()])
    if not ((shares >= 0) & (shares <= 1)).all():
        raise InputError(f"shares of outliers are from 0 to 1, not {shares.tolist()}")
    keep = 2 * spread * scaled(shares)
    offset = (keep - keep.mean())[np.searchsorted(blocks, held)]
    full = candidates.full_ranks
    low, high = -offset.max(), 1 - offset.min()
    return ScaledRanks(
        lambda t: full * np.clip(low + t * (high - low) + offset, 0, 1), full, candidates.names
    )


def _by_block(outliers: Outliers, blocks: list[str]) -> dict[str, float]:
    """Shares by path of the block, also if they are given by number."""
    numbers = {block.rpartition(".")[2]: block for block in blocks}
    if len(numbers) < len(blocks) and any(str(key) in numbers for key in outliers):
        first, second = sorted(blocks, key=lambda block: int(block.rpartition(".")[2]))[:2]
        raise InputError(
            f"shares of outliers by number do not tell {first} from {second}: give them by path"
        )
    return {numbers.get(str(key), str(key)): share for key, share in outliers.items()}


def prepare(pricing: Pricing, options: MethodOptions) -> Choose:
    """See `AllocationMethod`."""
    assert options.outliers is not None
    stated = {str(layer): float(share) for layer, share in options.outliers.items()}
    ranks = along(pricing, owl(pricing.candidates, options.outliers))

    def choose(target: Target) -> Chosen:
        return Chosen(ranks(target).ranks, options={"outliers": stated})

    return choose


OWL = AllocationMethod(prepare, needs=("outliers",))

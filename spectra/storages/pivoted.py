"""Pivoted storage: what a rank costs."""

from typing import TYPE_CHECKING

import numpy as np

from spectra.storages.registry import Doubles, Integers, Storage

if TYPE_CHECKING:
    from spectra.storages.pivoted_layer import PivotedLinear


class PivotedStorage(Storage):
    """r rows of the product, the others expressed through them: r(m + n - r) parameters.

    The order of rows, an int32 each, is not counted.
    """

    def parameters(self, rows: Integers, cols: Integers, rank: Integers) -> Integers:
        """See `Storage`."""
        return rank * (rows + cols - rank)

    def rank_of(self, rows: Integers, cols: Integers, parameters: Doubles) -> Doubles:
        """See `Storage`."""
        sides = rows + cols
        ranks: Doubles = (sides - np.sqrt(sides**2 - 4.0 * parameters)) / 2
        return ranks

    def layer(self) -> "type[PivotedLinear]":
        """See `Storage`."""
        from spectra.storages.pivoted_layer import PivotedLinear

        return PivotedLinear


PIVOTED = PivotedStorage()

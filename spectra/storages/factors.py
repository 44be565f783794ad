"""The storage of a matrix as two factors: what a rank costs."""

from typing import TYPE_CHECKING

from spectra.storages.registry import Doubles, Integers, Storage

if TYPE_CHECKING:
    from spectra.storages.factors_layer import LowRankLinear


class FactorStorage(Storage):
    """Two factors: r(m + n) parameters."""

    def parameters(self, rows: Integers, cols: Integers, rank: Integers) -> Integers:
        """See `Storage`."""
        return rank * (rows + cols)

    def rank_of(self, rows: Integers, cols: Integers, parameters: Doubles) -> Doubles:
        """See `Storage`."""
        return parameters / (rows + cols)

    def layer(self) -> "type[LowRankLinear]":
        """See `Storage`."""
        from spectra.storages.factors_layer import LowRankLinear

        return LowRankLinear


FACTORS = FactorStorage()

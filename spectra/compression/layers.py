"""The layer for each storage."""

from spectra.allocation.costs import require_storage
from spectra.storages.factors_layer import LowRankLinear
from spectra.storages.pivoted_layer import PivotedLinear

LAYERS: dict[str, type[LowRankLinear] | type[PivotedLinear]] = {
    layer.storage: layer for layer in (LowRankLinear, PivotedLinear)
}


def layer_of_storage(storage: str) -> "type[LowRankLinear] | type[PivotedLinear]":
    """The layer for a storage.

    Raises
    ------
    InputError
        When there is no such storage.
    """
    return LAYERS[require_storage(storage)]

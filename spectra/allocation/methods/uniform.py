"""The same fraction of every matrix: of full ranks for an ERR, of parameters for a budget."""

from spectra.allocation.methods.registry import AllocationMethod, Choose, MethodOptions
from spectra.allocation.methods.scaled_ranks import along, uniform, uniform_parameters
from spectra.allocation.pricing import Pricing


def prepare(pricing: Pricing, options: MethodOptions) -> Choose:
    """See `AllocationMethod`."""
    given = pricing.candidates
    return along(pricing, uniform(given), uniform_parameters(given, pricing.storage))


UNIFORM = AllocationMethod(prepare)

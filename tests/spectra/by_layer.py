"""An allocation method of the tests: the deeper a layer, the more of its ranks are removed."""

import numpy as np

from spectra.allocation.methods.registry import AllocationMethod, Choose, MethodOptions
from spectra.allocation.methods.scaled_ranks import along, removing
from spectra.allocation.pricing import Pricing
from spectra.registry import Entry

NAME = "by-layer"


def prepare(pricing: Pricing, options: MethodOptions) -> Choose:
    given = pricing.candidates
    depth = np.array([c.matrix.layer + 1.0 for c in given.each])
    return along(pricing, removing(given, depth))


BY_LAYER = AllocationMethod(prepare)
ENTRY = Entry("deeper layers lose more", f"{__name__}:BY_LAYER")

"""The least summed error: relative truncation error, or expected change of the loss."""

from functools import partial

from spectra.allocation.budget import Menus, parameters_within
from spectra.allocation.methods.registry import AllocationMethod, Choose, Chosen, MethodOptions
from spectra.allocation.pricing import Pricing
from spectra.allocation.target import Target


def prepare(pricing: Pricing, options: MethodOptions, *, squared: bool = False) -> Choose:
    """See `AllocationMethod`; errors are squared if spectra are weighted to one unit."""
    menus = Menus(pricing.candidates, storage=pricing.storage, align=pricing.align, squared=squared)

    def choose(target: Target) -> Chosen:
        if target.kind == "err":
            return Chosen(menus.choose(menus.parameters_for(target.value)).ranks)
        parameters = parameters_within(target.value, menus.dense)
        if parameters < menus.least:
            raise target.unreachable("ranks allow", menus.least / menus.dense)
        found = menus.choose(parameters)
        about = {"summed_error": found.error, "lower_bound": found.lower_bound}
        return Chosen(found.ranks, options=about)

    return choose


BUDGET = AllocationMethod(prepare, searched=("budget",))
LOSS = AllocationMethod(partial(prepare, squared=True), needs=("statistics",), searched=("budget",))

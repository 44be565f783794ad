"""Register compressed checkpoints with transformers and peft once they are imported.

Reading a store must not wait for transformers and torch, so `import spectra` leaves a hook on
transformers' list of quantizers, which imports ours; that registers itself. Another on peft makes
it adapt low-rank layers.
"""

import importlib
from types import ModuleType

import wrapt

from spectra.transformers_internals import is_tried

LIST = "transformers.quantizers.auto"
OURS = "spectra.models.quantizer"
TUNERS = "peft.tuners.tuners_utils"


def register_when_imported() -> None:
    """Register with transformers and peft now if they are imported, else as soon as they are."""
    wrapt.register_post_import_hook(_register, LIST)
    wrapt.register_post_import_hook(_adapt, TUNERS)


def _adapt(tuners: ModuleType) -> None:
    from spectra.models.adaptable import adapt_when_injected

    adapt_when_injected(tuners)


def _register(_: ModuleType) -> None:
    try:
        importlib.import_module(OURS)
    except (ImportError, AttributeError):
        if is_tried():
            raise
        # transformers stays usable; it knows no compressed checkpoints then, and refuses them

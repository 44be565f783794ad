"""Register compressed checkpoints with transformers once it is imported, without importing it.

Reading a store must not wait for transformers and torch, so `import spectra` leaves a hook on
transformers' list of quantizers, which imports ours; that registers itself.
"""

import importlib
from types import ModuleType

import wrapt

from spectra.transformers_internals import is_tried

LIST = "transformers.quantizers.auto"
OURS = "spectra.models.quantizer"


def register_when_imported() -> None:
    """Register with transformers now if it is imported, else as soon as it is."""
    wrapt.register_post_import_hook(_register, LIST)


def _register(_: ModuleType) -> None:
    try:
        importlib.import_module(OURS)
    except (ImportError, AttributeError):
        if is_tried():
            raise
        # transformers stays usable; it knows no compressed checkpoints then, and refuses them

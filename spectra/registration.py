"""Register compressed checkpoints with transformers and peft once they are imported.

Reading a store must not wait for transformers and torch, so `import spectra` leaves a hook on
transformers' list of quantizers, which registers ours with it, and one on peft, so that it adapts
low-rank layers.
"""

from types import ModuleType

import wrapt

QUANTIZERS = "transformers.quantizers.auto"
TUNERS = "peft.tuners.tuners_utils"


def register_when_imported() -> None:
    """Register with transformers and peft now if they are imported, else as soon as they are."""
    wrapt.register_post_import_hook(_register, QUANTIZERS)
    wrapt.register_post_import_hook(_adapt, TUNERS)


def _adapt(tuners: ModuleType) -> None:
    from spectra.models.adaptable import adapt_when_injected

    adapt_when_injected(tuners)


def _register(quantizers: ModuleType) -> None:
    from spectra.checkpoint.spectra_config import METHOD
    from spectra.models.quantizer import SpectraQuantizationConfig, SpectraQuantizer

    if METHOD not in quantizers.AUTO_QUANTIZER_MAPPING:
        quantizers.register_quantization_config(METHOD)(SpectraQuantizationConfig)
        quantizers.register_quantizer(METHOD)(SpectraQuantizer)

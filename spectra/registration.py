"""Register compressed checkpoints with transformers once it is imported, without importing it.

Reading a store must not wait for transformers and torch, so `import spectra` leaves a hook on
transformers' list of quantizers, which registers ours with it.
"""

from types import ModuleType

import wrapt

QUANTIZERS = "transformers.quantizers.auto"


def register_when_imported() -> None:
    """Register with transformers now if it is imported, else as soon as it is."""
    wrapt.register_post_import_hook(_register, QUANTIZERS)


def _register(quantizers: ModuleType) -> None:
    from spectra.checkpoint.spectra_config import METHOD
    from spectra.models.quantizer import SpectraQuantizationConfig, SpectraQuantizer

    if METHOD not in quantizers.AUTO_QUANTIZER_MAPPING:
        quantizers.register_quantization_config(METHOD)(SpectraQuantizationConfig)
        quantizers.register_quantizer(METHOD)(SpectraQuantizer)

"""Make transformers know compressed checkpoints once it is imported, without importing it.

Reading a store must not wait for transformers and torch, so `import spectra` leaves a finder that
waits for transformers' list of quantizers and registers ours with it.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

QUANTIZERS = "transformers.quantizers.auto"


def register_when_imported() -> None:
    """Register with transformers now if it is there, else as soon as it is."""
    if QUANTIZERS in sys.modules:
        _register(sys.modules[QUANTIZERS])
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def _register(quantizers: ModuleType) -> None:
    from spectra.checkpoint.spectra_config import METHOD
    from spectra.models.quantizer import SpectraQuantizationConfig, SpectraQuantizer

    if METHOD not in quantizers.AUTO_QUANTIZER_MAPPING:
        quantizers.register_quantization_config(METHOD)(SpectraQuantizationConfig)
        quantizers.register_quantizer(METHOD)(SpectraQuantizer)


class _Waiting(MetaPathFinder):
    """Finds one module, by asking the others, and has it executed by `_Registering`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != QUANTIZERS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    """Executes a module as its own loader does, and registers with it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(module)

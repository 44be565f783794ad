"""How transformers loads a compressed checkpoint: by its quantizer interface, no remote code.

`from_pretrained` finds the quantizer by the ``quant_method`` of ``config.json``, builds the model
without weights, lets us put low-rank layers in place of linear ones, and fills them by name.
So ``device_map``, ``dtype``, ``save_pretrained`` and ``generate`` work as for any model. Before it
fills them, every tensor's name, shape and hash is compared with the configuration.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from spectra.checkpoint.digests import digest
from spectra.checkpoint.spectra_config import METHOD, VERSION, SpectraConfig
from spectra.machine.cores import available_cores
from spectra.models.lowrank import put_dense, put_layers
from spectra.models.pairs import unpair
from spectra.storages.layer import LayerPair
from spectra.transformers_internals import (
    keep_names,
    keep_values,
    leave_out,
    require_tried,
    saves_adapter_only,
    usual_names,
)
from spectra_data.errors import InputError

SHOWN = 4
UNCHECKED = "SPECTRA_SKIP_HASHES"
"""Environment variable that skips the comparison of hashes, not that of names and shapes."""


@register_quantization_config(METHOD)
class SpectraQuantizationConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a compressed checkpoint; see `SpectraConfig`."""

    def __init__(
        self,
        rank_map: Mapping[str, Any] | None = None,
        compression: Mapping[str, Any] | None = None,
        sha256: Mapping[str, str] | None = None,
        places: Mapping[str, Any] | None = None,
        version: int = VERSION,
        **_: Any,
    ) -> None:
        require_tried()
        self.quant_method: Any = METHOD
        self.version = version
        self.rank_map = dict(rank_map or {})
        self.compression = dict(compression or {})
        self.sha256 = dict(sha256 or {})
        if places:
            self.places = dict(places)

    def parsed(self) -> SpectraConfig:
        """The configuration, parsed and validated."""
        return SpectraConfig.of({"quantization_config": self.to_dict()})


@register_quantizer(METHOD)
class SpectraQuantizer(HfQuantizer):
    """Puts low-rank layers into a model that is being loaded."""

    requires_calibration = True
    quantization_config: SpectraQuantizationConfig

    def _process_model_before_weight_loading(
        self, model: torch.nn.Module, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> torch.nn.Module:
        config = self.quantization_config.parsed()
        if checkpoint_files:
            require_whole(config, checkpoint_files)
        put_layers(model, config)
        leave_out(model, {f"^{re.escape(name)}$" for name in config.guards})
        keep_values(model, [*config.factored, *(name.rpartition(".")[0] for name in config.guards)])
        return model

    def _process_model_after_weight_loading(
        self, model: torch.nn.Module, **_: Any
    ) -> torch.nn.Module:
        if self.quantization_config.parsed().places:
            keep_names(model)  # those of parts are no names that transformers converts
        return model

    def get_state_dict_and_metadata(
        self, model: torch.nn.Module
    ) -> tuple[dict[str, torch.Tensor] | None, dict[str, Any]]:
        """Update the hashes; `save_pretrained` calls this before it writes the configuration."""
        if saves_adapter_only(model):
            return None, {}
        _unpair(model)
        config = self.quantization_config.parsed()
        state = model.state_dict()
        dtype = next(model.parameters()).dtype
        state |= {name: torch.empty(shape, dtype=dtype) for name, shape in config.guards.items()}
        # other tensors may be stored under names that the model does not use
        own = {name: state[name] for name in config.tensors}
        movable = not any(value.is_meta for value in own.values())
        self.quantization_config.sha256 = dict(_hashes(own.items())) if movable else {}
        return state, {}

    def dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        """`model.dequantize()`: the dense model, all of it in a dtype if one is named."""
        made: Any = super().dequantize(model)  # type: ignore[no-untyped-call]
        if dtype is not None:
            wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
            for parameter in made.parameters():
                parameter.data = parameter.data.to(wanted)
        return made

    def _dequantize(self, model: torch.nn.Module, dtype: Any = None) -> Any:
        # transformers passes the configuration's dtype, which need not be the model's; after
        # save_pretrained it is only a name
        put_dense(model, self.quantization_config.parsed())
        usual_names(model)
        return model

    def is_serializable(self) -> bool:
        """Whether `save_pretrained` can write the model: always."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether it can be trained: yes, factors are ordinary parameters."""
        return True


def _unpair(model: torch.nn.Module) -> None:
    """Restore low-rank layers that were split into pairs of linear ones for adapters."""
    for name, module in model.named_modules():
        parts = module.children() if isinstance(module, LayerPair) else ()
        if any(type(part) is not torch.nn.Linear for part in parts):
            raise InputError(
                f"{name} still has adapters: merge them (merge_and_unload), then save the result"
            )
    unpair(model)


def require_whole(config: SpectraConfig, files: Sequence[str]) -> None:
    """Require that files hold the tensors of a configuration: names, shapes, hashes.

    Raises
    ------
    InputError
        With the tensors that differ.
    """
    expected = config.tensors
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        if not str(path).endswith(".safetensors"):
            raise InputError(f"{Path(path).name} is not a safetensors file")
        with safe_open(path, framework="pt") as file:
            shapes |= {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
    wrong = [f"{name} is missing" for name in {**expected, **config.sha256} if name not in shapes]
    wrong += [
        f"{name} is {shapes[name]}, but its rank map says {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if not wrong and config.sha256 and not os.environ.get(UNCHECKED):
        with torch.device("cpu"):  # transformers may be building on meta, where nothing has values
            found = dict(_hashes(_tensors(files)))
        wrong = [
            f"{name} is not what was written"
            for name, known in config.sha256.items()
            if found[name] != known
        ]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise InputError(f"the compressed checkpoint is damaged: {'; '.join(wrong[:SHOWN])}{more}")


def _tensors(files: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def _hashes(tensors: Any) -> Iterator[tuple[str, str]]:
    """SHA-256 of tensors by name, one per core, with few in memory at a time."""
    with ThreadPoolExecutor(available_cores()) as pool:
        waiting: list[tuple[str, Any]] = []
        for name, tensor in tensors:
            waiting.append((name, pool.submit(digest, tensor)))
            if len(waiting) > 2 * available_cores():
                first, job = waiting.pop(0)
                yield first, job.result().hex()
        for name, job in waiting:
            yield name, job.result().hex()

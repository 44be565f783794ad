"""The tensors of a model under the names of its parameters, to be written again."""

from typing import Any

import torch

from spectra.checkpoint.checkpoint import Tensors
from spectra.checkpoint.tensors import NAMES, StoredTensor
from spectra.compression.settings import require_known_dtype
from spectra.models.empty import empty_model
from spectra.models.gguf_tensors import gguf_tensors
from spectra.models.loading import load_whole
from spectra.models.source import Source
from spectra.transformers_internals import tied_parameters
from spectra_data.errors import InputError


class ModelState:
    """A model in memory, as tensors by name."""

    def __init__(self, model: torch.nn.Module) -> None:
        tied = tied_parameters(model)
        self._state = {k: v for k, v in model.state_dict().items() if k not in tied}
        self.tensors = {
            name: StoredTensor(name, tuple(value.shape), NAMES.get(value.dtype, "F32"), "")
            for name, value in self._state.items()
        }

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """See `Tensors`."""
        value: torch.Tensor = self._state[name]
        return value if first is None else value[first]


def model_tensors(source: Source) -> tuple[Tensors, dict[str, Any]]:
    """A checkpoint's tensors under the names of its model, and the model's configuration.

    For a GGUF file, they are those of the model that transformers loads, in bfloat16.

    Raises
    ------
    InputError
        When there is no configuration, or the weights are quantised.
    """
    checkpoint = source.checkpoint
    if checkpoint.problems:
        raise InputError("; ".join(checkpoint.problems))
    if source.is_gguf:
        made = gguf_tensors(source)
        model: Any = (
            load_whole(source, torch.bfloat16).model if made is None else empty_model(source)
        )
        config: Any = model.config
        config.architectures = [type(model).__name__]
        described = config.to_dict()
        described.pop("quantization_config", None)
        tensors: Tensors = ModelState(model) if made is None else made.rounded(torch.bfloat16)
        return tensors, described | {"dtype": "bfloat16"}
    described = dict(checkpoint.config)
    if "model_type" not in described:
        raise InputError(f"{source} has no config.json with a model_type")
    if described.get("quantization_config") is not None:
        raise InputError(
            f"{source} is already quantised or compressed: use the checkpoint that it was made from"
        )
    return checkpoint.source, described


def tensor_bytes(source: Tensors, name: str) -> int:
    """Bytes of a stored tensor."""
    stored = source.tensors[name]
    return torch.Size(stored.shape).numel() * stored.width


def require_dtype(name: str) -> torch.dtype:
    """A floating dtype by its name.

    Raises
    ------
    InputError
        When there is none; the message lists those that exist.
    """
    require_known_dtype(name)
    dtype: torch.dtype = getattr(torch, name)
    return dtype

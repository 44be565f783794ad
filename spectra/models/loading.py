"""A checkpoint as transformers' model: whole, or a skeleton whose blocks are read when they run."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data.errors import InputError
from spectra.checkpoint.address import addresses
from spectra.checkpoint.checkpoint import Checkpoint, Tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, and where its blocks' weights come from if not from itself."""

    model: torch.nn.Module
    source: Tensors | None = None

    @property
    def streams(self) -> bool:
        """Whether blocks are filled when they run."""
        return self.source is not None

    def fill(self, module: torch.nn.Module, path: str, device: torch.device) -> None:
        """Read the weights of a module that has none."""
        assert self.source is not None
        state = {
            name: self.source.read(f"{path}.{name}").to(device, torch.float32)
            for name, _ in module.named_parameters()
        }
        for name, value in state.items():
            if not torch.isfinite(value).all():
                raise InputError(f"{path}.{name} holds a NaN or an infinity")
        module.load_state_dict(state, assign=True, strict=False)
        module.requires_grad_(False)


def hub_arguments(address: str) -> dict[str, Any]:
    """How transformers names a checkpoint: a folder, a hub name with revision, or a GGUF file.

    Of an adapter's folder, its base.
    """
    from spectra.compression.adapter import adapter_of

    if adapter := adapter_of(address):
        return hub_arguments(adapter.base)
    (found,) = addresses([address])
    path = Path(found.place)
    if found.place.endswith(".gguf"):
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent)}
    named: dict[str, Any] = {"pretrained_model_name_or_path": found.place}
    return named | ({"revision": found.revision} if found.revision else {})


def load_whole(address: str, dtype: torch.dtype | str = torch.float32, **options: Any) -> Loaded:
    """A checkpoint's model in memory; of an adapter's folder, its base with the adapter in it.

    Raises
    ------
    InputError
        When transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    from spectra.compression.adapter import adapter_of, apply_adapter, require_base

    adapter = adapter_of(address)
    if adapter is not None:
        require_base(adapter, address)
    with loading(address):
        arguments = hub_arguments(address) | options
        if "gguf_file" in arguments:
            arguments |= _unpacked()
        model = AutoModelForCausalLM.from_pretrained(dtype=dtype, **arguments)
    return Loaded(model if adapter is None else apply_adapter(model, address))


def _unpacked() -> dict[str, Any]:
    """A GGUF file's weights as parameters: newer releases of transformers leave them packed where
    they have kernels to compute with them.
    """
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def load_config(address: str) -> Any:
    """A checkpoint's configuration, as transformers has it.

    Raises
    ------
    InputError
        When transformers cannot load it.
    """
    from transformers import AutoConfig

    with loading(address):
        return AutoConfig.from_pretrained(**hub_arguments(address))


def silence_library_bars() -> None:
    """Keep the bars that transformers draws for every shard out of ours."""
    from transformers.utils import logging

    untyped: Any = logging
    untyped.disable_progress_bar()


def model_tokenizer(address: str) -> "PreTrainedTokenizerFast":
    """A checkpoint's own tokenizer.

    Raises
    ------
    InputError
        When it has none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        with loading(address):
            tokenizer = AutoTokenizer.from_pretrained(**hub_arguments(address))
    except InputError as error:
        if not Path(address).expanduser().exists():  # the hub may be out of reach
            raise
        raise InputError(
            f"{address} has no tokenizer: put one beside it, or name it by --tokenizer"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"{address} has no tokenizer.json: name a tokenizer by --tokenizer")
    return tokenizer


def empty_model(address: str) -> Any:
    """A checkpoint's model without weights, on torch's meta device; its buffers are real.

    Raises
    ------
    InputError
        When transformers does not know the model.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = load_config(address)
    auto: Any = AutoModelForCausalLM
    with loading(address), init_empty_weights(include_buffers=False):
        return auto.from_config(config, dtype=torch.float32)


def load_skeleton(checkpoint: Checkpoint, address: str) -> Loaded | None:
    """The model without its blocks' weights; None where the checkpoint's tensors are not its own.

    Raises
    ------
    InputError
        When transformers does not know the model, or a tensor cannot be read.
    """
    if address.endswith(".gguf"):
        return None
    if getattr(load_config(address), "quantization_config", None) is not None:
        return None
    model = empty_model(address)
    model.tie_weights()
    held = checkpoint.source.tensors
    parameters: Mapping[str, torch.nn.Parameter] = dict(model.named_parameters())
    for name, parameter in parameters.items():
        stored = held.get(name)
        if stored is None or stored.shape != tuple(parameter.shape) or not stored.readable_as:
            return None
    blocks = {matrix.name.partition(f".{matrix.layer}.")[0] for matrix in checkpoint.matrices}
    for name in parameters:
        if not any(name.startswith(f"{path}.") for path in blocks):
            owner, _, last = name.rpartition(".")
            module = model.get_submodule(owner)
            value = checkpoint.source.read(name).to(torch.float32)
            setattr(module, last, torch.nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    return Loaded(model, checkpoint.source)


@contextlib.contextmanager
def loading(address: str) -> Any:
    """Say in one line that transformers cannot load something.

    Raises
    ------
    InputError
        For whatever it raises.
    """
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, AttributeError) as error:
        lines = str(error).strip().splitlines()
        raise InputError(
            f"cannot load {address}: {lines[0] if lines else type(error).__name__}"
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()

"""A checkpoint as transformers' model: whole, or a skeleton whose blocks are read when they run."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spectra.checkpoint.address import Address, one_address, open_folder
from spectra.checkpoint.checkpoint import ADAPTER, Checkpoint, Tensors, open_checkpoint
from spectra.checkpoint.compressed import is_compressed
from spectra.checkpoint.gguf_file import gguf_parts
from spectra.checkpoint.shards import is_weights
from spectra.models.match import amiss
from spectra_data.errors import InputError
from spectra_data.pointers import require_fetched

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
        module.load_state_dict(state, assign=True, strict=False)
        module.requires_grad_(False)


def hub_arguments(address: str) -> dict[str, Any]:
    """How transformers names a checkpoint: a folder, a hub name with revision, or a GGUF file.

    Of an adapter's folder, its base.
    """
    from spectra.compression.adapter import adapter_of

    if adapter := adapter_of(address):
        return hub_arguments(adapter.base)
    if _is_peft(address):
        return {"pretrained_model_name_or_path": address}
    found = one_address(address)
    path = Path(found.place)
    if path.suffix == ".gguf" or _only_gguf(path):
        name = _single_gguf(found)
        folder = path if path.is_dir() else path.parent
        return {"pretrained_model_name_or_path": str(folder), "gguf_file": name}
    if path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent)}
    named: dict[str, Any] = {"pretrained_model_name_or_path": found.place}
    return named | ({"revision": found.revision} if found.revision else {})


def is_gguf(address: str) -> bool:
    """Whether an address is a GGUF file, or a folder with no other weights."""
    return "gguf_file" in hub_arguments(address)


def _only_gguf(folder: Path) -> bool:
    """Whether a folder's weights are GGUF files alone."""
    if not folder.is_dir():
        return False
    suffixes = {path.suffix for path in folder.iterdir() if is_weights(path.name)}
    return suffixes == {".gguf"}


def _single_gguf(address: Address) -> str:
    """The file of a model in GGUF, which transformers reads from one file alone."""
    folder, _ = open_folder(address)
    names = gguf_parts(folder, folder.named)
    if len(names) > 1:
        raise InputError(
            f"{address} is a model in {len(names)} GGUF files, and transformers reads one: join "
            f"them by llama.cpp's `llama-gguf-split --merge {names[0]} JOINED.gguf`"
        )
    return names[0]


def load_whole(address: str, dtype: torch.dtype | str = torch.float32, **options: Any) -> Loaded:
    """A checkpoint's model in memory; of an adapter's folder, its base with the adapter in it.

    Every parameter is one that the checkpoint holds, and finite.

    Raises
    ------
    InputError
        When transformers cannot load it, or would make up some of its weights.
    """
    from spectra.compression.adapter import adapter_of, apply_adapter, require_base

    adapter = adapter_of(address)
    if adapter is None:
        return Loaded(_whole(address, dtype, options))
    require_base(adapter, address)
    model = apply_adapter(_whole(adapter.base, dtype, options), address)
    require_finite(address, model.named_parameters())
    return Loaded(model)


def _whole(address: str, dtype: torch.dtype | str, options: Mapping[str, Any]) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    arguments = hub_arguments(address)
    checkpoint = None if _left_to_transformers(address) else open_checkpoint(address)
    if checkpoint is not None and checkpoint.problems:
        raise InputError("; ".join(checkpoint.problems))
    with loading(address):
        if "gguf_file" in arguments:
            arguments |= _unpacked()
        elif checkpoint is not None and not checkpoint.usual:
            auto, arguments = _given(address, checkpoint)
        model, report = auto.from_pretrained(
            dtype=dtype, output_loading_info=True, **arguments, **options
        )
    found: torch.nn.Module = model
    require_loaded(address, found, report)
    return found


def _left_to_transformers(address: str) -> bool:
    """Whether transformers alone knows the files: a hub's, or a `peft` adapter with its base."""
    return _is_peft(address) or one_address(address).is_hub_name


def _is_peft(address: str) -> bool:
    folder = Path(address)
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def _given(address: str, checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
    """The class, and arguments that hand it the tensors of files that it would not take itself."""
    if is_compressed(checkpoint.config):
        raise InputError(f"{address} is a part of a compressed checkpoint: name its folder")
    names = checkpoint.match.plain if checkpoint.match is not None else {}
    stored = {names.get(name, name): name for name in checkpoint.stored.tensors}
    tensors = {plain: checkpoint.stored.read(name) for plain, name in stored.items()}
    model = empty_model(address)
    arguments = {
        "pretrained_model_name_or_path": None,
        "config": model.config,
        "state_dict": tensors,
    }
    return type(model), arguments


def require_loaded(address: str, model: torch.nn.Module, report: Mapping[str, Any]) -> None:
    """Require that every parameter came from the checkpoint, and is finite.

    Parameters
    ----------
    address
        The checkpoint, for messages.
    model
        As transformers made it.
    report
        What it says of that (``output_loading_info``).

    Raises
    ------
    InputError
        With the weights that it made up, left out, or found in another shape, or the first that
        is not finite.
    """
    kind = type(model).__name__
    found = {
        f"missing, which {kind} has": report["missing_keys"],
        f"not of {kind}": report["unexpected_keys"],
        f"of another shape than {kind} has": [entry[0] for entry in report["mismatched_keys"]],
    }
    lines = amiss(found)
    lines += [str(message).strip().splitlines()[0] for message in report.get("error_msgs") or ()]
    if lines:
        raise InputError(f"{address} does not hold the weights of its model: {'; '.join(lines)}")
    require_finite(address, model.named_parameters())


def require_finite(address: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Require finite numbers.

    Raises
    ------
    InputError
        With the name of the first weight that holds others.
    """
    for name, value in tensors:
        floating = value.is_floating_point() and not value.is_meta
        if floating and not torch.isfinite(value.detach()).all():
            raise InputError(f"{address}: {name} holds a NaN or an infinity")


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

    place = hub_arguments(address)["pretrained_model_name_or_path"]
    require_fetched(Path(place))
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

    All tensors are read once, so that one that is not finite is named before any pass.

    Raises
    ------
    InputError
        When transformers does not know the model, a tensor cannot be read, is not finite, or is
        not the model's.
    """
    if is_gguf(address):
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
    if checkpoint.match is not None and (lines := checkpoint.match.lines()):
        raise InputError(f"{address} does not hold the weights of its model: {'; '.join(lines)}")
    require_finite(address, ((name, checkpoint.source.read(name)) for name in parameters))
    blocks = {matrix.block.rpartition(".")[0] for matrix in checkpoint.matrices}
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

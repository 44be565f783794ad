"""A checkpoint as a model of transformers: whole, or a skeleton that reads each block to run it."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spectra.checkpoint.checkpoint import Tensors
from spectra.checkpoint.compressed import MergedTensors, is_compressed
from spectra.checkpoint.match import Match, amiss
from spectra.checkpoint.places import PartTensors, StackedTensors
from spectra.models.adapter import apply_adapter, require_base
from spectra.models.empty import empty_model
from spectra.models.gguf_tensors import gguf_tensors
from spectra.models.lowrank import put_layers
from spectra.models.messages import loading
from spectra.models.parts import take_apart
from spectra.models.places import undivided
from spectra.models.source import Source
from spectra_data.errors import InputError


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, and the source of its blocks' weights if it does not hold them."""

    model: torch.nn.Module
    source: Tensors | None = None
    dtype: torch.dtype = torch.float32
    """Precision in which blocks are filled."""

    @property
    def streams(self) -> bool:
        """Whether blocks are filled when they run."""
        return self.source is not None

    def fill(self, module: torch.nn.Module, path: str, device: torch.device) -> None:
        """Read the weights of a module that has none, and the buffers that are stored with them."""
        assert self.source is not None
        names = [name for name, _ in module.named_parameters()]
        names += [n for n, _ in module.named_buffers() if f"{path}.{n}" in self.source.tensors]
        state = {
            name: self._rounded(self.source.read(f"{path}.{name}")).to(device) for name in names
        }
        module.load_state_dict(state, assign=True, strict=False)
        module.requires_grad_(False)

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def load_whole(
    named: str | Source, dtype: torch.dtype | str = torch.float32, **options: Any
) -> Loaded:
    """Load a checkpoint's model; for an adapter's folder, the base with the adapter applied.

    Every parameter comes from the checkpoint, and is finite.

    Raises
    ------
    InputError
        When transformers cannot load it, or would initialise weights at random.
    """
    source = Source.of(named)
    if source.adapter is None:
        return Loaded(_whole(source, dtype, options))
    require_base(source)
    model = apply_adapter(_whole(source.base, dtype, options), source.address)
    require_finite(source.address, model.named_parameters())
    return Loaded(model)


def _whole(source: Source, dtype: torch.dtype | str, options: Mapping[str, Any]) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    arguments = dict(source.arguments)
    checkpoint = None if source.is_left_to_transformers else source.checkpoint
    if checkpoint is not None and checkpoint.problems:
        raise InputError("; ".join(checkpoint.problems))
    if checkpoint is not None and checkpoint.match is not None:
        require_match(source, checkpoint.match)
    with loading(source.address):
        if source.is_gguf and (tensors := gguf_tensors(source)) is not None:
            if isinstance(dtype, torch.dtype):
                tensors = tensors.rounded(dtype)
            auto, arguments = _of_tensors(source, {n: tensors.read(n) for n in tensors.tensors})
        elif source.is_gguf:
            require_one_file(source)
            arguments |= _unpacked()
        elif checkpoint is not None and not checkpoint.usual:
            auto, arguments = _given(source)
        elif not source.is_peft:
            arguments["config"] = copy.deepcopy(source.config)
        model, report = auto.from_pretrained(
            dtype=dtype, output_loading_info=True, **arguments, **options
        )
    found: torch.nn.Module = model
    require_loaded(source.address, found, report)
    return found


def _given(source: Source) -> tuple[Any, dict[str, Any]]:
    """The model class, and arguments that pass it tensors of files that it would not find."""
    checkpoint = source.checkpoint
    if is_compressed(checkpoint.config):
        raise InputError(f"{source} is part of a compressed checkpoint: name its folder")
    names = checkpoint.match.plain if checkpoint.match is not None else {}
    stored = {names.get(name, name): name for name in checkpoint.stored.tensors}
    tensors = {plain: checkpoint.stored.read(name) for plain, name in stored.items()}
    return _of_tensors(source, tensors)


def _of_tensors(source: Source, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, dict[str, Any]]:
    """The model class, and arguments that give it tensors by its parameters' names."""
    model = empty_model(source)
    arguments = {
        "pretrained_model_name_or_path": None,
        "config": model.config,
        "state_dict": tensors,
    }
    return type(model), arguments


def require_one_file(source: Source) -> None:
    """Require a GGUF model in one file, as transformers itself reads no more.

    Raises
    ------
    InputError
        When it is in several, with the command that joins them.
    """
    if len(source.gguf_files) > 1:
        raise InputError(
            f"{source} is a model in {len(source.gguf_files)} GGUF files, and transformers, which "
            "has to load this family whole, reads one: join them with llama.cpp's "
            f"`llama-gguf-split --merge {source.gguf_files[0].name} JOINED.gguf`"
        )


def require_loaded(address: str, model: torch.nn.Module, report: Mapping[str, Any]) -> None:
    """Require that every parameter came from the checkpoint, and is finite.

    Parameters
    ----------
    address
        Address of the checkpoint, for messages.
    model
        Model that transformers loaded.
    report
        Report of transformers on the loading (``output_loading_info``).

    Raises
    ------
    InputError
        With the weights that are missing, unexpected, or of another shape, or the first that is not
        finite.
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


def require_match(source: Source, match: Match) -> None:
    """Require that a checkpoint holds the weights of its model, and no others.

    Raises
    ------
    InputError
        With the weights that are missing, unexpected, or of another shape.
    """
    if lines := match.lines():
        raise InputError(f"{source} does not hold the weights of its model: {'; '.join(lines)}")


def require_finite(address: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Require finite weights.

    Raises
    ------
    InputError
        With the name of the first weight that is not finite.
    """
    for name, value in tensors:
        floating = value.is_floating_point() and not value.is_meta
        if floating and not torch.isfinite(value.detach()).all():
            raise InputError(f"{address}: {name} holds a NaN or an infinity")


def _unpacked() -> dict[str, Any]:
    """Arguments that unpack a GGUF file's weights: newer releases of transformers keep them packed
    if they have kernels for them.
    """
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def load_parted(source: Source) -> Loaded:
    """A checkpoint's model, in which every matrix has a linear layer of its own.

    Its blocks have no weights until they are filled, where the checkpoint permits that.

    Raises
    ------
    InputError
        When transformers cannot load it.
    """
    skeleton = load_skeleton(source, apart=True)
    if skeleton is not None:
        return skeleton
    loaded = load_whole(source)
    if source.adapter is None:
        take_apart(loaded.model, undivided(source))
    return loaded


def load_skeleton(
    source: Source, dtype: torch.dtype = torch.float32, *, apart: bool = False
) -> Loaded | None:
    """The model without its blocks' weights; None if its parameters are not stored one to one.

    Reads all tensors once, so that one that is not finite is reported before any pass.

    Parameters
    ----------
    source
        Checkpoint, compressed or not.
    dtype
        Precision of its weights.
    apart
        Whether every matrix gets a linear layer of its own (`take_apart`).

    Raises
    ------
    InputError
        When transformers does not know the model, or a tensor is unreadable, not finite, or not a
        parameter of the model.
    """
    quantised = getattr(source.config, "quantization_config", None) is not None
    if source.adapter is not None or (quantised and not source.is_compressed):
        return None
    model, checkpoint = empty_model(source), source.checkpoint
    tensors: Tensors | None = gguf_tensors(source) if source.is_gguf else checkpoint.source
    if tensors is None:
        return None
    if isinstance(checkpoint.source, MergedTensors):
        put_layers(model, source.compressed)
        tensors = checkpoint.source.source
    whole = undivided(source)
    if apart:
        take_apart(model, whole)
        tensors = PartTensors(tensors, whole)
    elif stacked := {name: place for name, place in whole.items() if place.is_alone}:
        tensors = StackedTensors(tensors, stacked)
    model.tie_weights()
    parameters: Mapping[str, torch.nn.Parameter] = dict(model.named_parameters())
    for name, parameter in parameters.items():
        stored = tensors.tensors.get(name)
        if stored is None or stored.shape != tuple(parameter.shape) or not stored.readable_as:
            return None
    if checkpoint.match is not None:
        require_match(source, checkpoint.match)
    require_finite(source.address, ((name, tensors.read(name)) for name in parameters))
    loaded = Loaded(model, tensors, dtype)
    blocks = {matrix.block.rpartition(".")[0] for matrix in checkpoint.matrices}
    for name in parameters:
        if not any(name.startswith(f"{path}.") for path in blocks):
            owner, _, last = name.rpartition(".")
            module = model.get_submodule(owner)
            value = tensors.read(name).to(dtype)
            setattr(module, last, torch.nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    return loaded

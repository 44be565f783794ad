"""The inner interfaces of transformers that spectra uses, and the releases they were tried with.

A release may change them without an error: tensors get other names, experts another layout. So
every one of them is used here, and only with a release that was tried. `make test-lowest` runs the
tests with the lowest, `make test` with that of ``constraints.txt``. transformers is not imported
before a use.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectra_data.errors import InputError

if TYPE_CHECKING:
    import torch

LOWEST = "5.7"
BELOW = "5.25"
"""The first release after those that were tried."""
UNTRIED = "SPECTRA_UNTRIED_TRANSFORMERS"
"""Environment variable that permits other releases."""

_EXPERT = re.compile(r"\.(\d+)\.")
_GATE_UP = ("gate_proj", "up_proj")
_MOVED = {
    r"rotary_emb\.inv_freq": "rotary_emb.inv_freq",
    r"(^|\.)position_ids$": "position_ids",
}
"""Tensors of old checkpoints that transformers leaves out, by pattern, if buffers end like this."""


def is_tried() -> bool:
    """Whether the inner interfaces of the installed release are known."""
    from transformers import __version__

    return _number(LOWEST) <= _number(__version__) < _number(BELOW)


def require_tried() -> None:
    """Require a release of transformers whose inner interfaces are known.

    Raises
    ------
    InputError
        When another one is installed, with the command that installs one.
    """
    from transformers import __version__

    if not is_tried() and not os.environ.get(UNTRIED):
        raise InputError(
            f"transformers {__version__} is not among the releases that spectra was tried with: "
            f"pip install 'transformers>={LOWEST},<{BELOW}', or set {UNTRIED}=1 to use it anyway"
        )


def _number(version: str) -> tuple[int, int]:
    """The first two numbers of a version; patches change no interfaces."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


@dataclass(frozen=True)
class Destination:
    """The parameters into which transformers puts a stored tensor."""

    parameters: tuple[str, ...]
    """Names of the parameters that it fills, whole or in part; several if it is cut."""
    whole: bool
    """Whether it is exactly one parameter, unchanged."""
    matrix: str | None = None
    """Path of the expert's matrix that it is, if it goes into a stack of experts."""


class Conversion:
    """How transformers renames and merges the tensors of files for a model.

    Parameters
    ----------
    model
        Model of transformers, on the meta device or another.
    """

    def __init__(self, model: Any) -> None:
        require_tried()
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        conversions: list[Any] = get_model_conversion_mapping(model)
        self._prefix = model.base_model_prefix
        self._renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
        self._converters: list[Any] = [c for c in conversions if isinstance(c, WeightConverter)]

    def place(self, name: str, shapes: Mapping[str, Any]) -> Destination:
        """The destination of a stored tensor among the parameters of the model."""
        from transformers.core_model_loading import rename_source_key

        into: Any = self._prefix, shapes
        renamed, pattern = rename_source_key(name, self._renamings, self._converters, *into)
        if renamed not in shapes and name in shapes:
            renamed, pattern = rename_source_key(name, [], [], *into)
        if pattern is None:
            return Destination((renamed,), True)
        converter = next(c for c in self._converters if pattern in c.source_patterns)
        first = converter.target_patterns[0]
        parameters = tuple(renamed.replace(first, target) for target in converter.target_patterns)
        matrix = None
        if type(converter.operations[0]).__name__ == "MergeModulelist" and len(parameters) == 1:
            before, _ = rename_source_key(name, self._renamings, [])
            matrix = _expert(before, renamed, converter.source_patterns.index(pattern))
        return Destination(parameters, False, matrix)

    def stored_name(self, name: str, shapes: Mapping[str, Any]) -> str:
        """The name of a parameter in files; its own if no other leads back to it."""
        from transformers.core_model_loading import PrefixChange

        renamed = name
        for renaming in reversed(self._renamings):
            if not isinstance(renaming, PrefixChange):
                renamed, _ = renaming.reverse_transform().rename_source_key(renamed)
        back = self.place(renamed, shapes)
        return renamed if back.whole and back.parameters == (name,) else name


def _expert(name: str, stack: str, part: int) -> str | None:
    """The path of an expert's matrix; ``….experts.gate_up_proj`` holds two for each expert."""
    folder, _, last = stack.rpartition(".")
    number = _EXPERT.search(name, len(folder))
    if number is None:
        return None
    return f"{folder}.{number[1]}.{_GATE_UP[part] if last == 'gate_up_proj' else last}"


def from_config(kind: Any, config: Any) -> Any:
    """A model of a class, with the initialisation of its configuration."""
    require_tried()
    return kind._from_config(config)


def tied_parameters(model: Any) -> dict[str, str]:
    """Parameters that share another's values, with that other one's name."""
    require_tried()
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def dispensable(model: Any) -> tuple[set[str], set[str]]:
    """Patterns of parameters that a checkpoint may lack, and of tensors that a model leaves out."""
    require_tried()
    buffers = [name for name, _ in model.named_buffers()]
    moved = {p for p, end in _MOVED.items() if any(name.endswith(end) for name in buffers)}
    left_out = set(model._keys_to_ignore_on_load_unexpected or ())
    return set(model._keys_to_ignore_on_load_missing or ()), left_out | moved


def leave_out(model: Any, patterns: set[str]) -> None:
    """Make a model leave out tensors of a checkpoint, beside those that it leaves out anyway."""
    require_tried()
    known = model._keys_to_ignore_on_load_unexpected
    # older releases add a list to it, newer ones a set
    both = known | patterns if isinstance(known, set) else [*(known or ()), *sorted(patterns)]
    model._keys_to_ignore_on_load_unexpected = both


def initialise_again(model: Any, but: Iterable[str] = ()) -> None:
    """Run the initialisation that follows loading, for every module but those of `keep_values`."""
    require_tried()
    for module in model.modules():
        module._is_hf_initialized = False
    keep_values(model, but)
    model.initialize_weights()


def keep_values(model: Any, paths: Iterable[str]) -> None:
    """Keep initialisation from reaching for the weights of layers that have none any more.

    That of a module may set its children's. So the modules above are taken as initialised, if they
    hold no tensor themselves.

    Parameters
    ----------
    model
        Model that is being loaded.
    paths
        Paths of layers whose weights all come from the checkpoint.
    """
    require_tried()
    modules = dict(model.named_modules())
    for path in {path.rpartition(".")[0] for path in paths}:
        module = modules.get(path)
        if module is not None and not any(module._parameters) and not any(module._buffers):
            module._is_hf_initialized = True


def saves_adapter_only(model: Any) -> bool:
    """Whether `save_pretrained` writes only the adapter that `load_adapter` put into a model."""
    require_tried()
    return bool(getattr(model, "_hf_peft_config_loaded", False))


@dataclass(frozen=True)
class GgufConversion:
    """What transformers does to the tensors of a GGUF file."""

    names: Mapping[str, str]
    """Names of parameters, by llama.cpp's names of tensors."""
    processor: Any
    parsed: Mapping[str, Any]

    def undone(self, name: str, weight: "torch.Tensor") -> "torch.Tensor":
        """A parameter, from the tensor that llama.cpp calls by a name."""
        import torch

        made = self.processor.process(
            weights=weight.numpy(),
            name=name,
            tensor_key_mapping=dict(self.names),
            parsed_parameters={**self.parsed, "tensors": {}},
        )
        return torch.from_numpy(made.weights.copy())


def gguf_conversion(path: Path, architecture: str, model: Any) -> GgufConversion:
    """How transformers converts a GGUF file for a model, which needs no weights.

    Parameters
    ----------
    path
        File that describes the model.
    architecture
        The file's own name of its architecture.
    model
        The model.
    """
    from transformers import modeling_gguf_pytorch_utils as gguf

    read: Any = gguf.load_gguf_checkpoint
    parsed = read(str(path), return_tensors=False)
    kind: Any = gguf.TENSOR_PROCESSORS.get(architecture, gguf.TensorProcessor)
    processor = kind(config=parsed["config"])
    return GgufConversion(gguf.get_gguf_hf_weights_map(model, processor), processor, parsed)


@dataclass(frozen=True)
class StackLayout:
    """How a module stacks the matrices of its experts into one parameter."""

    transposed: bool
    """Whether it is (experts, in, out) instead of (experts, out, in)."""
    interleaved: bool
    """Whether rows of gate and up alternate; else gate is the first half."""


def stack_layout(owner: "torch.nn.Module") -> StackLayout | None:
    """The layout of the experts in a module; None if it states none, so that it is no stack.

    A module of transformers states it (``integrations/moe.py``), except Llama 4's.
    """
    kind = type(owner)
    if kind.__module__.startswith("transformers."):
        require_tried()
    if kind.__name__ == "Llama4TextExperts":
        return StackLayout(transposed=True, interleaved=False)
    if not hasattr(owner, "is_transposed"):
        return None
    concatenated = getattr(owner, "is_concatenated", True)
    return StackLayout(bool(owner.is_transposed), not concatenated)


def is_conv1d(module: Any) -> bool:
    """Whether a module is the linear layer of GPT-2, which holds its weight as (in, out)."""
    return type(module).__name__ == "Conv1D"


def conv1d(weight: "torch.nn.Parameter", bias: Any) -> "torch.nn.Module":
    """Such a layer, with a weight of (in, out)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    kind: Any = Conv1D
    with torch.device("meta"):
        made = kind(weight.shape[1], weight.shape[0])
    made.weight, made.bias = weight, bias
    layer: torch.nn.Module = made
    return layer


EAGER = "eager"
"""transformers' name of experts that run one at a time, by the model's own code."""


def run_experts_in_turn(owner: Any) -> str | None:
    """Make a module run its experts one at a time, and not by a kernel; return how it did before.

    None if it did already, as modules of a model share their configuration.
    """
    require_tried()
    before = getattr(getattr(owner, "config", None), "_experts_implementation", None)
    run_experts_by(owner, EAGER)
    return None if before in (None, EAGER) else str(before)


def run_experts_by(owner: Any, implementation: str | None) -> None:
    """Make a module run its experts in a way; None changes nothing."""
    require_tried()
    config: Any = getattr(owner, "config", None)
    if implementation is not None and hasattr(config, "_experts_implementation"):
        config._experts_implementation = implementation


def keep_names(model: Any) -> None:
    """Make `save_pretrained` write a model's parameters under their own names."""
    require_tried()
    model._weight_conversions = []


def usual_names(model: Any) -> None:
    """Undo `keep_names`: `save_pretrained` writes the names that the family's files have."""
    require_tried()
    model._weight_conversions = None

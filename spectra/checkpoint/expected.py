"""The parameters of a configuration's model in transformers, by name and shape.

The model is built on torch's meta device, where it takes no memory. Kept are its names, its shapes,
and how transformers renames and merges the tensors of files.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from spectra_data.errors import InputError, first_line

_EXPERT = re.compile(r"\.(\d+)\.")
_GATE_UP = ("gate_proj", "up_proj")


@dataclass(frozen=True)
class Destination:
    """The parameters into which transformers puts a stored tensor."""

    parameters: tuple[str, ...]
    """Names of the parameters that it fills, whole or in part; several if it is cut."""
    whole: bool
    """Whether it is exactly one parameter, unchanged."""
    matrix: str | None = None
    """Path of the expert's matrix that it is, if it goes into a stack of experts."""


@dataclass(frozen=True, eq=False)
class Expected:
    """A model class of transformers for a configuration."""

    kind: str
    """Name of the class."""
    shapes: dict[str, tuple[int, ...]]
    tied: Mapping[str, str]
    """Parameters that share another's values, and may be left out of a file."""
    language: str
    """Path of the language model in a model with other towers, ending in a dot; else empty."""
    _prefix: str
    _renamings: list[Any]
    _converters: list[Any]
    _may_miss: re.Pattern[str] | None
    _may_hold: re.Pattern[str] | None

    def place(self, name: str) -> Destination:
        """The destination of a stored tensor, by transformers' own conversion."""
        from transformers.core_model_loading import apply_renamings, rename_source_key

        into = self._prefix, self.shapes
        renamed, pattern = rename_source_key(name, self._renamings, self._converters, *into)
        if renamed not in self.shapes and name in self.shapes:
            renamed, pattern = rename_source_key(name, [], [], *into)
        if pattern is None:
            return Destination((renamed,), True)
        converter = next(c for c in self._converters if pattern in c.source_patterns)
        first = converter.target_patterns[0]
        parameters = tuple(renamed.replace(first, target) for target in converter.target_patterns)
        matrix = None
        if type(converter.operations[0]).__name__ == "MergeModulelist" and len(parameters) == 1:
            before = apply_renamings(name, self._renamings)
            matrix = _expert(before, renamed, converter.source_patterns.index(pattern))
        return Destination(parameters, False, matrix)

    def may_miss(self, name: str) -> bool:
        """Whether a checkpoint of this class may lack a parameter."""
        return self._may_miss is not None and self._may_miss.search(name) is not None

    def may_hold(self, name: str) -> bool:
        """Whether a checkpoint may hold a tensor that this class leaves out."""
        return self._may_hold is not None and self._may_hold.search(name) is not None


def expected_of(config: Mapping[str, Any]) -> list[Expected]:
    """The model classes for a configuration: causal language models, then those that it names.

    Parameters
    ----------
    config
        Content of ``config.json``.

    Returns
    -------
    Empty if transformers does not know the model: one of remote code, or of a newer release.
    """
    known = {name: value for name, value in config.items() if name != "quantization_config"}
    return _expected(json.dumps(known, sort_keys=True, default=str))


@lru_cache(maxsize=16)
def _expected(config: str) -> list[Expected]:
    from transformers import CONFIG_MAPPING

    known = json.loads(config)
    family = known.get("model_type")
    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        return []
    try:
        made: Any = CONFIG_MAPPING[family].from_dict(known)
    except Exception as error:  # each configuration class checks itself in its own way
        first = first_line(error)
        raise InputError(f"config.json does not fit {family}: {first}") from error
    found: dict[str, Expected] = {}
    for build in _builders(made):
        model = _on_meta(build)
        if model is not None and type(model).__name__ not in found:
            found[type(model).__name__] = _described(model)
    return list(found.values())


def _builders(config: Any) -> Iterator[Any]:
    import transformers

    causal: Any = transformers.AutoModelForCausalLM
    yield lambda: causal.from_config(config)
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    for kind in named:
        if isinstance(kind, type):
            yield lambda kind=kind: kind._from_config(config)
    if not named:
        base: Any = transformers.AutoModel
        yield lambda: base.from_config(config)


def _on_meta(build: Any) -> Any:
    """The model; None if there is no such class, or it cannot be built on the meta device."""
    try:
        with torch.device("meta"):
            return build()
    except Exception:
        return None


def _described(model: Any) -> Expected:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    conversions = get_model_conversion_mapping(model)
    # as in transformers: old checkpoints still hold buffers that have moved
    moved = {
        r"rotary_emb\.inv_freq": "rotary_emb.inv_freq",
        r"(^|\.)position_ids$": "position_ids",
    }
    buffers = [name for name, _ in model.named_buffers()]
    ignored = {p for p, end in moved.items() if any(name.endswith(end) for name in buffers)}
    return Expected(
        type(model).__name__,
        {name: tuple(value.shape) for name, value in model.state_dict().items()},
        dict(getattr(model, "all_tied_weights_keys", None) or {}),
        language_path(model),
        model.base_model_prefix,
        [c for c in conversions if isinstance(c, WeightRenaming)],
        [c for c in conversions if isinstance(c, WeightConverter)],
        _any_of(model._keys_to_ignore_on_load_missing),
        _any_of({*(model._keys_to_ignore_on_load_unexpected or ()), *ignored}),
    )


def language_path(model: Any) -> str:
    """Path of the language model in a model with other towers, ending in a dot; else empty."""
    config = getattr(model, "config", None)
    if "text_config" not in getattr(type(config), "sub_configs", {}):
        return ""
    decoder = model.get_decoder()
    path = next((path for path, module in model.named_modules() if module is decoder), "")
    return f"{path}." if path else ""


def _any_of(patterns: Any) -> re.Pattern[str] | None:
    return re.compile("|".join(f"({pattern})" for pattern in patterns)) if patterns else None


def _expert(name: str, stack: str, part: int) -> str | None:
    """The path of an expert's matrix; ``….experts.gate_up_proj`` holds two for each expert."""
    folder, _, last = stack.rpartition(".")
    number = _EXPERT.search(name, len(folder))
    if number is None:
        return None
    return f"{folder}.{number[1]}.{_GATE_UP[part] if last == 'gate_up_proj' else last}"

"""Low-rank layers, made adaptable when `peft` puts adapters into a model.

`peft` adapts the linear layers that it knows, and ``all-linear`` means those: low-rank layers would
silently be left out. So they become the pairs of linear layers that they are made of
(`spectra.models.pairs`), which share their parameters and compute the same. If a configuration
names matrices, the names of their parts are added.
"""

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
import wrapt

from spectra.composites import is_bias
from spectra.models.pairs import chosen, compressed_layers, linear_layers, pair

ALL = "all-linear"
PATTERNS = ("rank_pattern", "alpha_pattern")


def prepare(model: torch.nn.Module, config: Any) -> None:
    """Pair the low-rank layers of a model if a configuration of `peft` targets parts of them.

    Parameters
    ----------
    model
        Model that adapters are put into; changed in place.
    config
        Configuration of `peft`; names of matrices are extended by those of their parts.

    Raises
    ------
    InputError
        When all linear layers are targets, and a low-rank layer supports no adapters.
    """
    layers, targets = compressed_layers(model), getattr(config, "target_modules", None)
    if not layers or not targets:
        return
    everything = isinstance(targets, str) and targets.lower() == ALL
    if not everything and not _names_parts(layers, targets):
        return  # peft refuses low-rank layers that are named themselves
    pair(model)
    linear = linear_layers(model)
    parts = {name: matrix for name, matrix in linear.items() if name != matrix}
    if excluded := getattr(config, "exclude_modules", None):
        config.exclude_modules = _with(excluded, chosen(parts, excluded))
    for key in PATTERNS:
        if pattern := getattr(config, key, None):
            setattr(config, key, _extended(pattern, parts, linear))


def adapt_when_injected(tuners: ModuleType) -> None:
    """Prepare every model before `peft` puts adapters into it.

    Parameters
    ----------
    tuners
        The module ``peft.tuners.tuners_utils``.
    """
    wrapt.wrap_function_wrapper(tuners, "BaseTuner.__init__", _before_init)
    wrapt.wrap_function_wrapper(tuners, "BaseTuner.inject_adapter", _before_injection)


def _before_init(wrapped: Any, tuner: Any, args: Any, kwargs: Any) -> Any:
    named = dict(zip(("model", "peft_config", "adapter_name"), args, strict=False)) | kwargs
    config = named["peft_config"]
    if isinstance(config, Mapping):
        config = config[named["adapter_name"]]
    prepare(named["model"], config)
    return wrapped(*args, **kwargs)


def _before_injection(wrapped: Any, tuner: Any, args: Any, kwargs: Any) -> Any:
    named = dict(zip(("model", "adapter_name"), args, strict=False)) | kwargs
    prepare(named["model"], tuner.peft_config[named["adapter_name"]])
    return wrapped(*args, **kwargs)


def _names_parts(layers: Mapping[str, Any], targets: Any) -> bool:
    """Whether targets name linear layers that low-rank layers are made of."""
    parts = (
        f"{name}.{part}"
        for name, layer in layers.items()
        for part, _ in layer.named_parameters(recurse=False)
        if not is_bias(part)
    )
    return bool(chosen({part: part for part in parts}, targets))


def _extended(
    pattern: Mapping[str, Any], parts: Mapping[str, str], linear: Mapping[str, str]
) -> dict[str, Any]:
    """Values by patterns of names; parts get the values of their matrices."""
    found: dict[str, Any] = {}
    for wanted, value in pattern.items():
        matching = re.compile(rf"(.*\.)?({wanted})$")
        own = [re.escape(part) for part, matrix in parts.items() if matching.match(matrix)]
        if not own or any(matching.match(name) for name in linear):
            found[wanted] = value
        found |= dict.fromkeys(own, value)
    return found


def _with(names: Any, more: list[str]) -> Any:
    """Names, or the pattern of names, with more names."""
    if isinstance(names, str):
        return "|".join(f"(?:{one})" for one in (names, *map(re.escape, more)))
    return [*names, *more]

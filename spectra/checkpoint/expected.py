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

from spectra.transformers_internals import (
    Conversion,
    Destination,
    dispensable,
    from_config,
    require_tried,
    tied_parameters,
)
from spectra_data.errors import InputError, first_line


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
    _conversion: Conversion
    _may_miss: re.Pattern[str] | None
    _may_hold: re.Pattern[str] | None

    def place(self, name: str) -> Destination:
        """The destination of a stored tensor, by transformers' own conversion."""
        return self._conversion.place(name, self.shapes)

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
    require_tried()
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
            yield lambda kind=kind: from_config(kind, config)
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
    may_miss, may_hold = dispensable(model)
    return Expected(
        type(model).__name__,
        {name: tuple(value.shape) for name, value in model.state_dict().items()},
        tied_parameters(model),
        language_path(model),
        Conversion(model),
        _any_of(may_miss),
        _any_of(may_hold),
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

"""An adapter of peft, read as the update that it adds to its base's weights.

LoRA adds scale · B A to a weight, with scale = alpha / rank, or alpha / √rank if rank-stabilised
(Kalajdzievski 2023). The base is not needed, only its names and shapes, which the adapter has.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spectra.checkpoint.folder import Folder
from spectra.checkpoint.tensors import NAMES, StoredTensor
from spectra.matrices import Skipped
from spectra_data.errors import InputError
from spectra_data.reading import parse_json, read_json

DESCRIPTION = "adapter_config.json"
"""File by which transformers recognises an adapter of `peft`."""
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take from the base's weights what they put into the factors."""


def weights_of(folder: Folder) -> str:
    """The file of an adapter's tensors.

    Raises
    ------
    InputError
        When there is none.
    """
    found = next((name for name in WEIGHTS if name in folder.names), None)
    if found is None:
        raise InputError(f"it holds {DESCRIPTION}, but neither {' nor '.join(WEIGHTS)}")
    return found


def described(folder: Folder) -> dict[str, Any]:
    """The description of an adapter whose update follows from its own tensors.

    Raises
    ------
    InputError
        When it is damaged, or of another kind, with what to do.
    """
    config = parse_json(folder.text(DESCRIPTION), DESCRIPTION)
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise InputError(f"{DESCRIPTION} is damaged: it names no peft_type")
    kind = config["peft_type"]
    advice = "merge it into its base (merge_and_unload), and scan the result"
    if kind != "LORA":
        raise InputError(f"it is an adapter of kind {kind}, and only LORA is read: {advice}")
    if config.get("use_dora"):
        raise InputError(f"DoRA's update depends on its base's weights: {advice}")
    for key in ("layer_replication", "target_parameters"):
        if config.get(key):
            raise InputError(f"{DESCRIPTION} sets {key}, which is not read: {advice}")
    return config


def moves_base(config: Mapping[str, Any]) -> str | None:
    """The initialisation of an adapter that changed its base's weights; None for the usual ones."""
    way = str(config.get("init_lora_weights")).lower()
    return way if way.startswith(_MOVES_BASE) else None


def base_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of an adapter's base if it lies on this machine; {} if not."""
    place = Path(str(config.get("base_model_name_or_path") or ""), "config.json")
    found = read_json(place) if place.is_file() else {}
    return found if isinstance(found, dict) else {}


class UpdateTensors:
    """The updates of a LoRA adapter, under the names of its base's weights.

    Parameters
    ----------
    source
        Tensors of the adapter, as stored.
    config
        Content of ``adapter_config.json``.
    """

    def __init__(self, source: Any, config: Mapping[str, Any]) -> None:
        self._source, self._config = source, config
        self._factors: dict[str, dict[str, str]] = {}
        self.skipped: list[Skipped] = []
        """Tensors that belong to no update, with the reason."""
        for name in source.tensors:
            match = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
            if match is None:
                self.skipped.append(Skipped(name, "a whole tensor beside the adapter's factors"))
            else:
                self._factors.setdefault(match[1], {})[match[2]] = name
        self.tensors = {f"{path}.weight": self._update(path) for path in self._factors}

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """An update: (rows, cols), in float32, or float64 if its factors are.

        Raises
        ------
        InputError
            When one of its factors cannot be read.
        """
        if problem := self.tensors[name].problem:
            raise InputError(problem)
        path = name.removesuffix(".weight")
        factors = self._factors[path]
        dtype = self.tensors[name].dtype
        left, right = (self._source.read(factors[part]).to(dtype) for part in "BA")
        whole: torch.Tensor = (left @ right) * scale_of(self._config, path)
        return whole if first is None else whole[first]

    def _update(self, path: str) -> StoredTensor:
        factors = self._factors[path]
        held = {part: self._source.tensors[name] for part, name in factors.items()}
        one = next(iter(held.values()))
        lacking = [part for part in "AB" if part not in held]
        problem = next((tensor.problem for tensor in held.values() if tensor.problem), None)
        shape: tuple[int, ...] = ()
        if lacking:
            problem = f"{one.file}: {path}.lora_{lacking[0]}.weight is missing"
        elif any(len(tensor.shape) != 2 for tensor in held.values()):
            problem = f"{one.file}: {path} is no linear layer"
        else:
            (rows, rank), (inner, cols) = held["B"].shape, held["A"].shape
            shape = (rows, cols)
            if not rank == inner == rank_of(self._config, path):
                problem = problem or (
                    f"{one.file}: {path} has factors of ranks {inner} and {rank}, but "
                    f"{DESCRIPTION} says {rank_of(self._config, path)}"
                )
        wide = any(tensor.readable_as == torch.float64 for tensor in held.values())
        stored = NAMES[torch.float64 if wide else torch.float32]
        return StoredTensor(f"{path}.weight", shape, stored, one.file, problem)


def rank_of(config: Mapping[str, Any], path: str) -> int:
    """Rank of a layer's update, its own or all layers'."""
    return int(_own(config, "rank_pattern", path, config.get("r") or 0))


def scale_of(config: Mapping[str, Any], path: str) -> float:
    """Factor of a layer's B A: alpha / rank, or alpha / √rank if rank-stabilised."""
    rank = rank_of(config, path)
    alpha = float(_own(config, "alpha_pattern", path, config.get("lora_alpha") or 0))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _own(config: Mapping[str, Any], patterns: str, path: str, usual: Any) -> Any:
    """What a layer's name gets in a mapping of patterns to values, as peft matches them."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return usual

"""An adapter of peft, read as the update that it adds to its base's weights.

LoRA adds scale · B A to a weight, with scale = alpha / rank, or alpha / √rank if rank-stabilised
(Kalajdzievski 2023). The base is not needed, only its names and shapes, which the adapter has.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spectra.checkpoint.folder import Folder
from spectra.checkpoint.tensors import NAMES, StoredTensor
from spectra.matrices import Skipped
from spectra_data.errors import InputError
from spectra_data.fields import converted
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
        When there is no such file.
    """
    found = next((name for name in WEIGHTS if name in folder.names), None)
    if found is None:
        raise InputError(f"it holds {DESCRIPTION}, but neither {' nor '.join(WEIGHTS)}")
    return found


@dataclass(frozen=True)
class Lora:
    """Description of a LoRA whose update follows from its own tensors, in peft's terms."""

    r: int
    lora_alpha: float
    use_rslora: bool | None = False
    rank_pattern: dict[str, int] | None = None
    """Ranks of layers that have their own, by a pattern of their names."""
    alpha_pattern: dict[str, float] | None = None
    init_lora_weights: Any = True
    base_model_name_or_path: str | None = None

    def __post_init__(self) -> None:
        for pattern in (*(self.rank_pattern or {}), *(self.alpha_pattern or {})):
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(
                    f"{DESCRIPTION} is damaged: {pattern!r} is not a pattern of names"
                ) from error
        if min([self.r, *(self.rank_pattern or {}).values()]) < 1:
            raise InputError(f"{DESCRIPTION} is damaged: a rank is below 1")

    @classmethod
    def of(cls, folder: Folder) -> "Lora":
        """The description in an adapter's folder.

        Raises
        ------
        InputError
            When it is damaged, or of another kind of adapter, with what to do.
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
        return converted(f"{DESCRIPTION} is damaged: ", config, cls)

    def rank(self, path: str) -> int:
        """Rank of a layer's update."""
        return int(_own(self.rank_pattern, path, self.r))

    def scale(self, path: str) -> float:
        """Factor of a layer's B A: alpha / rank, or alpha / √rank if rank-stabilised."""
        alpha, rank = _own(self.alpha_pattern, path, self.lora_alpha), self.rank(path)
        return float(alpha / (math.sqrt(rank) if self.use_rslora else rank))

    @property
    def moves_base(self) -> str | None:
        """An initialisation that changed the base's weights; None for the others."""
        way = str(self.init_lora_weights).lower()
        return way if way.startswith(_MOVES_BASE) else None

    @property
    def base_config(self) -> dict[str, Any]:
        """The configuration of its base if that is on this machine; {} if not."""
        place = Path(self.base_model_name_or_path or "", "config.json")
        found = read_json(place) if self.base_model_name_or_path and place.is_file() else {}
        return found if isinstance(found, dict) else {}


class UpdateTensors:
    """The updates of a LoRA adapter, under the names of its base's weights.

    Parameters
    ----------
    source
        Tensors of the adapter, as stored.
    lora
        Description of the adapter.
    """

    def __init__(self, source: Any, lora: Lora) -> None:
        self._source, self._lora = source, lora
        self._factors: dict[str, dict[str, str]] = {}
        self.skipped: list[Skipped] = []
        """Tensors that belong to no update, with the reason."""
        for name in source.tensors:
            match = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
            if match is None:
                self.skipped.append(Skipped(name, "no factor of an update"))
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
        whole: torch.Tensor = (left @ right) * self._lora.scale(path)
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
            problem = f"{one.file}: {path} is not a linear layer"
        else:
            (rows, rank), (inner, cols) = held["B"].shape, held["A"].shape
            shape = (rows, cols)
            if not rank == inner == self._lora.rank(path):
                problem = problem or (
                    f"{one.file}: {path} has factors of ranks {inner} and {rank}, but "
                    f"{DESCRIPTION} says {self._lora.rank(path)}"
                )
        wide = any(tensor.readable_as == torch.float64 for tensor in held.values())
        stored = NAMES[torch.float64 if wide else torch.float32]
        return StoredTensor(f"{path}.weight", shape, stored, one.file, problem)


def _own(patterns: Mapping[str, float] | None, path: str, usual: float) -> float:
    """The value of the first pattern that a layer's name ends with, as peft matches them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return usual

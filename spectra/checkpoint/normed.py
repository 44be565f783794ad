"""Weights under weight norm, read as the weights that act.

Weight norm stores a direction v and a magnitude g for every row; the weight is g v / ‖v‖. torch
names them ``weight_v`` and ``weight_g``, or, in a parametrization, ``original1`` and ``original0``.
"""

from collections.abc import Mapping
from typing import Any

import torch

from spectra.checkpoint.tensors import StoredTensor
from spectra.composites import normed
from spectra.matrices import layer_of
from spectra_data.errors import InputError

_ENDS = {
    ".weight_v": ".weight_g",
    ".parametrizations.weight.original1": ".parametrizations.weight.original0",
}
"""Ends of the names of directions, and of their magnitudes."""


def is_normed(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether some matrices in blocks are stored as direction and magnitude."""
    return bool(_pairs(tensors))


class NormedTensors:
    """Tensors with the weights that act in place of directions and magnitudes.

    Parameters
    ----------
    source
        Tensors as stored.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._pairs = _pairs(source.tensors)
        parts = {part for pair in self._pairs.values() for part in pair}
        self.tensors: dict[str, StoredTensor] = {
            name: tensor for name, tensor in source.tensors.items() if name not in parts
        }
        for name, (magnitude, direction) in self._pairs.items():
            held, other = source.tensors[direction], source.tensors[magnitude]
            problem = held.problem or other.problem
            self.tensors[name] = StoredTensor(name, held.shape, held.format, held.file, problem)

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """See `Tensors`; a weight is formed in float32 and rounded to its direction's dtype."""
        if name not in self._pairs:
            whole: torch.Tensor = self._source.read(name, first)
            return whole
        if problem := self.tensors[name].problem:
            raise InputError(problem)
        magnitude, direction = (self._source.read(part) for part in self._pairs[name])
        whole = normed(magnitude, direction).to(direction.dtype)
        return whole if first is None else whole[first]


def _pairs(tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[str, str]]:
    """Names of magnitude and direction by the name of the weight, of matrices in blocks."""
    found = {}
    for name, tensor in tensors.items():
        end = next((end for end in _ENDS if name.endswith(end)), None)
        if end is None or len(tensor.shape) != 2 or layer_of(name) is None:
            continue
        path = name.removesuffix(end)
        other = tensors.get(path + _ENDS[end])
        rows, cols = tensor.shape
        if other is not None and other.shape in ((rows, 1), (1, cols), (1, 1), ()):
            found[f"{path}.weight"] = other.name, name
    return found

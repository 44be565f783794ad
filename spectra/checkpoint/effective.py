"""Weights that torch stores as two tensors, read as the weights that act.

Weight norm stores a direction v and a magnitude g: the weight is g v / ‖v‖. Pruning stores the
original weights and a mask: the weight is their product.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spectra.checkpoint.tensors import StoredTensor
from spectra.composites import masked, normed
from spectra.matrices import layer_of
from spectra_data.errors import InputError


@dataclass(frozen=True)
class _Pair:
    """Endings of the two tensors' names, and how torch makes a weight of the tensors."""

    main: str
    other: str
    made: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    thin: bool
    """Whether the other tensor has an entry per row or per column, not per entry of the main."""

    def fits(self, main: tuple[int, ...], other: tuple[int, ...]) -> bool:
        """Whether their shapes belong together."""
        rows, cols = main
        return other in ((rows, 1), (1, cols), (1, 1), ()) if self.thin else other == main


_PAIRS = (
    _Pair(".weight_v", ".weight_g", normed, True),
    _Pair(".parametrizations.weight.original1", ".parametrizations.weight.original0", normed, True),
    _Pair(".weight_orig", ".weight_mask", masked, False),
)


def has_pairs(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether some matrices in blocks are stored as two tensors."""
    return any(True for _ in _found(tensors))


class EffectiveTensors:
    """Tensors with the weights that act in place of the two that they are made of.

    Parameters
    ----------
    source
        Tensors as stored.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._pairs = dict(_found(source.tensors))
        parts = {
            path + end for path, pair in self._pairs.items() for end in (pair.main, pair.other)
        }
        self.tensors: dict[str, StoredTensor] = {
            name: tensor for name, tensor in source.tensors.items() if name not in parts
        }
        for path, pair in self._pairs.items():
            main, other = source.tensors[path + pair.main], source.tensors[path + pair.other]
            name, problem = f"{path}.weight", main.problem or other.problem
            self.tensors[name] = StoredTensor(name, main.shape, main.format, main.file, problem)

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """See `Tensors`; a weight is formed in float32 and rounded to the stored dtype."""
        path = name.removesuffix(".weight")
        pair = self._pairs.get(path) if name.endswith(".weight") else None
        if pair is None:
            whole: torch.Tensor = self._source.read(name, first)
            return whole
        if problem := self.tensors[name].problem:
            raise InputError(problem)
        main, other = (self._source.read(path + end) for end in (pair.main, pair.other))
        whole = pair.made(other, main).to(main.dtype)
        return whole if first is None else whole[first]


def _found(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, _Pair]]:
    """Paths of the layers in blocks whose matrices are stored as two tensors."""
    for name, tensor in tensors.items():
        for pair in _PAIRS:
            path = name.removesuffix(pair.main)
            other = tensors.get(path + pair.other)
            if path == name or other is None or len(tensor.shape) != 2 or layer_of(path) is None:
                continue
            if pair.fits(tensor.shape, other.shape):
                yield path, pair

"""Low-rank layers as pairs of linear layers, which adapters know how to adapt.

A pair shares its parameters with the layer that it was made from, and computes the same. After
adapters are merged into its linear layers, the pair is still a layer of the same rank.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch

from spectra.matrices import layer_of
from spectra.storages.layer import CompressedLinear, LayerPair, put


def pair(model: torch.nn.Module) -> None:
    """Replace every low-rank layer with a pair of linear ones.

    Raises
    ------
    InputError
        When a layer has no such pair.
    """
    for name, layer in compressed_layers(model).items():
        put(model, name, layer.pair())


def unpair(model: torch.nn.Module) -> None:
    """Replace every pair with the low-rank layer that it represents."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LayerPair):
            put(model, name, module.layer())


def linear_layers(model: torch.nn.Module) -> dict[str, str]:
    """The linear layers in the blocks of a paired model, each with the name of its matrix."""
    return {
        name: matrix_of(model, name)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and layer_of(name) is not None
    }


def matrix_of(model: torch.nn.Module, name: str) -> str:
    """The name of the matrix that a linear layer is, or is a part of."""
    parent = name.rpartition(".")[0]
    return parent if isinstance(model.get_submodule(parent), LayerPair) else name


def chosen(layers: dict[str, str], targets: str | Iterable[str]) -> list[str]:
    """The linear layers whose own name or whose matrix's name is a target.

    Targets have the meaning that `peft` gives them: a string is a regular expression for the whole
    name, a collection holds ends of names.
    """
    named: Callable[[str], bool]
    if isinstance(targets, str):
        pattern: Any = re.compile(targets)
        named = lambda name: pattern.fullmatch(name) is not None  # noqa: E731
    else:
        ends = set(targets)
        named = lambda name: any(name == e or name.endswith(f".{e}") for e in ends)  # noqa: E731
    return [name for name, matrix in layers.items() if named(name) or named(matrix)]


def compressed_layers(model: torch.nn.Module) -> dict[str, CompressedLinear]:
    """The low-rank layers of a model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, CompressedLinear)}

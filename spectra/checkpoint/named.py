"""A checkpoint's tensors under the names of its model's parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from spectra.checkpoint.tensors import StoredTensor


class NamedTensors:
    """Tensors under other names than those that they are stored by.

    Parameters
    ----------
    source
        The tensors as they are stored.
    names
        The new name of every tensor.
    """

    def __init__(self, source: Any, names: Mapping[str, str]) -> None:
        self._source = source
        self._stored = {name: stored for stored, name in names.items()}
        self.tensors: dict[str, StoredTensor] = {
            name: dataclasses.replace(source.tensors[stored], name=name)
            for name, stored in self._stored.items()
        }

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """See `Tensors`."""
        tensor: torch.Tensor = self._source.read(self._stored[name], first)
        return tensor

"""A checkpoint's tensors under the names of its model's parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from spectra.checkpoint.tensors import StoredTensor


class NamedTensors:
    """Tensors under names other than the stored ones.

    Parameters
    ----------
    source
        Tensors under their stored names.
    names
        New name of every tensor, by stored name.
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

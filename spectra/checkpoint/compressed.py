"""A compressed checkpoint, read as the dense one that it represents."""

from collections.abc import Mapping
from typing import Any

import torch

from spectra.checkpoint.digests import digest
from spectra.checkpoint.spectra_config import METHOD, SpectraConfig
from spectra.checkpoint.tensors import NAMES, StoredTensor
from spectra.storages.registry import STORAGES
from spectra_data.errors import InputError


class VerifiedTensors:
    """Tensors whose hashes are verified when they are read."""

    def __init__(self, source: Any, sha256: Mapping[str, str]) -> None:
        self._source, self._sha256 = source, sha256
        self.tensors: Mapping[str, StoredTensor] = source.tensors

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """A tensor; a single entry of a stack is not verified.

        Raises
        ------
        InputError
            When the tensor is not what was written.
        """
        tensor: torch.Tensor = self._source.read(name, first)
        known = self._sha256.get(name)
        if first is None and known is not None and digest(tensor).hex() != known:
            raise InputError(
                f"the compressed checkpoint is damaged: {name} is not what was written"
            )
        return tensor


class MergedTensors:
    """The tensors of a compressed checkpoint, with products in place of factors."""

    def __init__(self, source: Any, config: Mapping[str, Any]) -> None:
        described = SpectraConfig.of(config)
        self.source = VerifiedTensors(source, described.sha256)
        self._modules = described.factored
        self.tensors: dict[str, StoredTensor] = {}
        owners = {part: name for name, m in self._modules.items() for part in m.tensors}
        for tensor in source.tensors.values():
            owner = owners.get(tensor.name)
            if owner is None:
                self.tensors[tensor.name] = tensor
            elif f"{owner}.weight" not in self.tensors:
                module = self._modules[owner]
                self.tensors[f"{owner}.weight"] = StoredTensor(
                    f"{owner}.weight",
                    (module.rows, module.cols),
                    tensor.format if tensor.readable_as else self._format(owner),
                    tensor.file,
                    self._problem(owner),
                )

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """A tensor; a product is formed in float32 and rounded to the dtype of its factors.

        Raises
        ------
        InputError
            When one of its stored tensors cannot be read.
        """
        path = name.removesuffix(".weight")
        module = self._modules.get(path) if name.endswith(".weight") else None
        if module is None:
            whole: torch.Tensor = self.source.read(name, first)
            return whole
        if problem := self.tensors[name].problem:
            raise InputError(problem)
        parts = {part: self.source.read(f"{path}.{part}") for part in module.shapes}
        for part, shape in module.shapes.items():
            if tuple(parts[part].shape) != shape:
                raise InputError(
                    f"the checkpoint is damaged: {path}.{part} is {tuple(parts[part].shape)}, "
                    f"but its rank map says {shape}"
                )
        stored = STORAGES[module.storage].stored().decode(parts, module.rows, module.cols)
        product = stored.float().product().to(next(iter(parts.values())).dtype)
        return product if first is None else product[first]

    def _format(self, owner: str) -> str:
        """Format of the first of its stored tensors that is present."""
        for part in self._modules[owner].tensors:
            if part in self.source.tensors:
                return str(self.source.tensors[part].format)
        return NAMES[torch.bfloat16]

    def _problem(self, owner: str) -> str | None:
        for part in self._modules[owner].tensors:
            stored = self.source.tensors.get(part)
            if stored is None:
                return f"{part} is missing"
            if stored.problem:
                return str(stored.problem)
        return None


def is_compressed(config: Mapping[str, Any]) -> bool:
    """Whether `spectra compress` wrote a configuration."""
    described = config.get("quantization_config")
    return isinstance(described, Mapping) and described.get("quant_method") == METHOD

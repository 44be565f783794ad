"""A compressed checkpoint, read as the dense one that it represents."""

from collections.abc import Mapping
from typing import Any

import torch

from spectra.checkpoint.digests import digest
from spectra.checkpoint.places import shared_tensors
from spectra.checkpoint.spectra_config import METHOD, SpectraConfig, StoredModule
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
    """The tensors of a compressed checkpoint as those of the dense one that it represents.

    Products are in place of factors, and layers that were taken apart are whole again.
    """

    def __init__(self, source: Any, config: Mapping[str, Any]) -> None:
        described = SpectraConfig.of(config)
        self.source = VerifiedTensors(source, described.sha256)
        self._modules = described.factored
        self._joined = shared_tensors(described.places)
        homes = {name: place.stored.tensor for name, place in described.places.items()}
        self.tensors: dict[str, StoredTensor] = {}
        owners = {part: n for n, m in self._modules.items() for part in m.tensors}
        owners |= {f"{n}.weight": n for n in homes if n not in self._modules}
        for tensor in source.tensors.values():
            owner = owners.get(tensor.name)
            if owner is None:
                self.tensors[tensor.name] = tensor
                continue
            name = homes.get(owner, f"{owner}.weight")
            if name not in self.tensors:
                self.tensors[name] = self._dense(name, owner, tensor)

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """A tensor; a product is formed in float32 and rounded to the dtype of its factors.

        Raises
        ------
        InputError
            When one of its stored tensors cannot be read.
        """
        shared = self._joined.get(name)
        module = (
            self._modules.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        )
        if shared is None and module is None:
            whole: torch.Tensor = self.source.read(name, first)
            return whole
        if problem := self.tensors[name].problem:
            raise InputError(problem)
        if shared is not None:
            return shared.joined(self._matrix, first)
        assert module is not None
        product = self._product(module)
        return product if first is None else product[first]

    def _matrix(self, name: str) -> torch.Tensor:
        """A matrix of a layer that was taken apart."""
        module = self._modules.get(name)
        if module is not None:
            return self._product(module)
        whole: torch.Tensor = self.source.read(f"{name}.weight")
        return whole

    def _product(self, module: StoredModule) -> torch.Tensor:
        path = module.name
        parts = {part: self.source.read(f"{path}.{part}") for part in module.shapes}
        for part, shape in module.shapes.items():
            if tuple(parts[part].shape) != shape:
                raise InputError(
                    f"the checkpoint is damaged: {path}.{part} is {tuple(parts[part].shape)}, "
                    f"but its rank map says {shape}"
                )
        stored = STORAGES[module.storage].stored().decode(parts, module.rows, module.cols)
        return stored.float().product().to(next(iter(parts.values())).dtype)

    def _dense(self, name: str, owner: str, tensor: StoredTensor) -> StoredTensor:
        """The dense tensor of a name, one of whose stored tensors this is."""
        shared = self._joined.get(name)
        matrices = list(shared.slices) if shared is not None else [owner]
        if shared is not None:
            shape = shared.shape
        else:
            shape = self._modules[owner].rows, self._modules[owner].cols
        stored = [part for matrix in matrices for part in self._parts(matrix)]
        form = tensor.format if tensor.readable_as else self._format(stored)
        return StoredTensor(name, shape, form, tensor.file, self._problem(stored))

    def _parts(self, matrix: str) -> list[str]:
        """Names of the stored tensors of a matrix."""
        module = self._modules.get(matrix)
        return [f"{matrix}.weight"] if module is None else list(module.tensors)

    def _format(self, stored: list[str]) -> str:
        """Format of the first stored tensor that is present."""
        for part in stored:
            if part in self.source.tensors:
                return str(self.source.tensors[part].format)
        return NAMES[torch.bfloat16]

    def _problem(self, names: list[str]) -> str | None:
        for part in names:
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

"""A model in memory, read like a checkpoint."""

from typing import Any

import torch

from spectra.checkpoint.expected import language_path
from spectra.checkpoint.tensor_slices import TensorSlice, find_slices
from spectra.checkpoint.tensors import NAMES, StoredTensor
from spectra.matrices import Matrix, Skipped, find_matrices, full_tensor, unwrapped


class ModuleTensors:
    """The parameters of a model; layers are recognised by class instead of by name."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = unwrapped(model)
        self.config: Any = getattr(self.model, "config", None)
        self._weights, self._skipped = find_matrices(self.model)
        self._by_name = {matrix.name: weight for matrix, weight in self._weights.items()}
        self.tensors = {
            f"{matrix.name}.weight": StoredTensor(
                f"{matrix.name}.weight",
                (matrix.rows, matrix.cols),
                NAMES.get(weight.parameter.dtype, str(weight.parameter.dtype)),
                "",
            )
            for matrix, weight in self._weights.items()
        }

    @property
    def language(self) -> str:
        """See `spectra.checkpoint.expected.Expected.language`."""
        return language_path(self.model)

    def slices(self) -> tuple[dict[Matrix, TensorSlice], list[Skipped]]:
        """The matrices, with fused layers split as in a checkpoint on disk."""
        config = self.config.to_dict() if hasattr(self.config, "to_dict") else {}
        # find_matrices already returns (rows, cols)
        found, skipped = find_slices(self.tensors, config, upright=True)
        return found, skipped + self._skipped

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """The weight of a layer; if the model is sharded, every process must call this."""
        weight = self._by_name[name.removesuffix(".weight")]
        whole = weight.of(full_tensor(weight.parameter.detach()))
        return whole if first is None else whole[first]

"""Linear layers that hold their weight in a storage, and the linear layers that carry adapters."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from spectra.storages.stored import StoredMatrix
from spectra_data.errors import InputError


class CompressedLinear(torch.nn.Module):
    """A linear layer whose weight is a `StoredMatrix`: its tensors are parameters and buffers.

    Parameters
    ----------
    in_features, out_features, rank
        Columns, rows and rank of the weight.
    bias, device, dtype
        As in `torch.nn.Linear`; tensors are left uninitialised.
    """

    stored: ClassVar[type[StoredMatrix]]
    """Type of the matrix that it holds."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.bias = torch.nn.Parameter(torch.empty(out_features, **at)) if bias else None
        for name, shape in self._shapes().items():
            if name in self.stored.indices:
                order = torch.arange(shape[0], dtype=torch.int32, device=device)
                self.register_buffer(name, order)
            else:
                self.register_parameter(name, torch.nn.Parameter(torch.empty(shape, **at)))

    @property
    def factorisation(self) -> StoredMatrix:
        """Its weight in stored form."""
        tensors = {name: getattr(self, name) for name in self._shapes()}
        return self.stored.decode(tensors, self.out_features, self.in_features)

    def product(self) -> torch.Tensor:
        """The weight that it stands for: (out_features, in_features)."""
        return self.factorisation.product()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features), through the whole product."""
        return F.linear(x, self.product(), self.bias)

    def pair(self) -> "LayerPair":
        """The layer as a pair of linear layers that share its parameters.

        Raises
        ------
        InputError
            When the layer has no such pair.
        """
        raise InputError(
            f"{type(self).__name__} layers support no adapters: use another --train, or merge the "
            "checkpoint first (`spectra merge`)"
        )

    def extra_repr(self) -> str:
        """Sides and rank."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}"
        )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self.stored.shapes(self.out_features, self.in_features, self.rank)


class LayerPair(torch.nn.Module):
    """A low-rank layer as linear layers: its children, which all belong to one matrix."""

    is_pair = True

    @abstractmethod
    def layer(self) -> CompressedLinear:
        """The layer that it stands for, sharing the pair's parameters."""


def put(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    """Replace the module at a path."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def linear(weight: Any, bias: Any = None) -> torch.nn.Linear:
    """A linear layer that shares these parameters."""
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight, made.bias = weight, bias
    return made

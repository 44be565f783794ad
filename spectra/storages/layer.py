"""Linear layers that hold their weight as a storage has it."""

from typing import Any

import torch


class CompressedLinear(torch.nn.Module):
    """What both have in common."""

    storage: str

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool, at: Any):
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.bias = torch.nn.Parameter(torch.empty(out_features, **at)) if bias else None

    @property
    def factorisation(self) -> Any:
        """What its weight is stored as."""
        raise NotImplementedError

    def product(self) -> torch.Tensor:
        """The weight that it stands for: (out_features, in_features)."""
        product: torch.Tensor = self.factorisation.product()
        return product

    def extra_repr(self) -> str:
        """Sides and rank."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}"
        )


def put(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    """Replace a module by its path."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def linear(weight: Any, bias: Any = None) -> torch.nn.Linear:
    """A linear layer that shares these parameters."""
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight, made.bias = weight, bias
    return made

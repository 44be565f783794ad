"""The matrices of a model, in the method's sense: linear layers inside transformer blocks."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.errors import InputError

if TYPE_CHECKING:
    import torch

ROLES = {f"{role}_proj": role for role in ("q", "k", "v", "o", "gate", "up", "down")}
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_BLOCK_INDEX = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Matrix:
    """A 2-D weight of a linear layer inside a transformer block."""

    name: str
    """Full path of the layer, e.g. ``model.layers.7.mlp.down_proj``."""
    layer: int
    """Index of the block."""
    role: str
    """``q k v o gate up down``, or the path's last component."""
    rows: int
    cols: int

    @property
    def full_rank(self) -> int:
        return min(self.rows, self.cols)


@dataclass(frozen=True)
class Skipped:
    """A parameter that is no matrix here, and why."""

    name: str
    reason: str


def role_of(name: str) -> str:
    """Role of a matrix from its full name."""
    last = name.rsplit(".", 1)[-1]
    return ROLES.get(last, last)


def layer_of(name: str) -> int | None:
    """Index of the block that a full name lies in; None outside of blocks."""
    match = _BLOCK_INDEX.search(f"{name}.")
    return int(match[1]) if match else None


def unwrapped(model: "torch.nn.Module") -> "torch.nn.Module":
    """The model inside of `torch.compile` and data-parallel wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in (
            "DistributedDataParallel",
            "DataParallel",
            "FullyShardedDataParallel",
        ):
            inner = model.module
        if inner is None:
            return model
        model = inner


def find_matrices(
    model: "torch.nn.Module",
) -> tuple[dict[Matrix, "torch.nn.Parameter"], list[Skipped]]:
    """Find the weights of all linear layers inside transformer blocks, in the model's order.

    A weight shared by several layers is one matrix, under its first name.

    Returns
    -------
    Matrices with their parameters (of (rows, cols), or its transpose for GPT-2's Conv1D, which has
    the same singular values), and every other parameter with the reason why it is left out.

    Raises
    ------
    InputError
        When the model has no such layer.
    """
    import torch

    model = unwrapped(model)
    linear: dict[str, bool] = {}  # weight name -> whether stored transposed
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            linear[f"{path}.weight"] = False
        elif type(module).__name__ == "Conv1D":
            linear[f"{path}.weight"] = True
    if any(type(parameter).__name__ == "DTensor" for parameter in model.parameters()):
        raise InputError(
            "the model's weights are sharded among processes, which is not supported yet"
        )
    matrices: dict[Matrix, torch.nn.Parameter] = {}
    skipped = []
    for parameter_name, parameter in model.named_parameters():
        name = ".".join(part for part in parameter_name.split(".") if part not in _WRAPPERS)
        layer = layer_of(name)
        if parameter_name not in linear:
            skipped.append(Skipped(name, "not the weight of a linear layer"))
        elif layer is None:
            skipped.append(Skipped(name, "outside the transformer blocks"))
        else:
            shape = parameter.shape[::-1] if linear[parameter_name] else parameter.shape
            path = name.removesuffix(".weight")
            matrices[Matrix(path, layer, role_of(path), *shape)] = parameter
    if not matrices:
        raise InputError(
            "the model has no linear layer inside a numbered block such as model.layers.0.mlp"
        )
    return matrices, skipped

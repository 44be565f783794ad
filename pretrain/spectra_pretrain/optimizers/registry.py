"""The optimizers that `--optimizer` names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spectra.registry import Entry, Registry
from spectra_pretrain.settings import Settings

if TYPE_CHECKING:
    import torch

    from spectra_pretrain.ways import OptimizerOptions

    Parameters = Sequence[torch.nn.Parameter]
    Build = Callable[[Parameters, Parameters, OptimizerOptions, Any], torch.optim.Optimizer]


def nothing(parameter: "torch.Tensor", settings: Any) -> bool:
    """No matrix is treated in a special way."""
    return False


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer: the matrices that it takes, how it is built, and the memory of its state."""

    build: "Build"
    """Builds the optimizer from the matrices that it takes, the other parameters, the common
    options and its own. Its state holds only tensors and numbers. A group's ``lr`` is its peak,
    which the schedule multiplies."""
    state_bytes: "Callable[[torch.Tensor, Any, bool], int]"
    """Bytes of a parameter's state, from its own options and whether it takes the parameter."""
    takes: "Callable[[torch.Tensor, Any], bool]" = nothing
    """Whether it takes a matrix, from its own options."""
    rest: str | None = None
    """Name of the optimizer for all other parameters; None if `build` handles them, too."""
    settings: type[Settings] = Settings
    """Class of its own options."""
    masters: tuple[str, ...] = ("float32",)
    """Precisions of trained weights that it updates."""


OPTIMIZERS: Registry[OptimizerKind] = Registry(
    "optimizer",
    {
        "adamw": Entry("AdamW", "spectra_pretrain.optimizers.adamw:ADAMW"),
        "galore": Entry(
            "Adam on gradients of matrices, projected to a low rank",
            "spectra_pretrain.optimizers.galore:GALORE",
        ),
    },
)

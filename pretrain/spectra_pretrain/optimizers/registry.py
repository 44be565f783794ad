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
    """No matrix gets a treatment of its own."""
    return False


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer: what it takes, what it makes, and what that holds in memory."""

    build: "Build"
    """From the matrices that it takes, the other parameters, the common options and its own to the
    optimizer. Its state holds tensors and numbers only. A group's ``lr`` is its peak, which the
    schedule multiplies."""
    state_bytes: "Callable[[torch.Tensor, Any, bool], int]"
    """Bytes of a parameter's state, with its own options, and whether it is one that it takes."""
    takes: "Callable[[torch.Tensor, Any], bool]" = nothing
    """Whether a matrix is one that it takes, with its own options."""
    rest: str | None = None
    """The optimizer of all other parameters; None where `build` takes them, too."""
    settings: type[Settings] = Settings
    """Its own options."""
    masters: tuple[str, ...] = ("float32",)
    """The precisions of trained weights that it updates."""


OPTIMIZERS: Registry[OptimizerKind] = Registry(
    "optimizer",
    {
        "adamw": Entry("AdamW", "spectra_pretrain.optimizers.adamw:ADAMW"),
        "galore": Entry(
            "Adam on gradients of matrices that are projected to a rank",
            "spectra_pretrain.optimizers.galore:GALORE",
        ),
    },
)

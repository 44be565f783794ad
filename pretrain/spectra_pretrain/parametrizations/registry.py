"""The parametrizations that `--train` names beside the model's own layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from spectra.registry import Entry, Registry
from spectra_pretrain.settings import Settings

if TYPE_CHECKING:
    from spectra.matrices import Matrix, Weight
    from spectra_pretrain.options import RunOptions

DENSE = "dense"
PEFT = "peft"


class Parametrized(Protocol):
    """A model whose layers are what a parametrization makes of them.

    A layer that holds its matrix in parts says what it is by `product` (see `spectra.composites`):
    so the recorder, maps and reports know it as the matrix that it stands for.
    """

    model: Any
    """With the layers in it; its parameters say whether they are trained."""
    kept: tuple[str, ...]
    """Names, in the model's state, of all that training or preparing it changes."""

    def weights(self) -> "Mapping[Matrix, Weight]":
        """The effective weight of every matrix."""
        ...

    def after_step(self, step: int, /) -> None:
        """Called between the optimizer's step and the clearing of gradients."""
        ...

    def state(self) -> dict[str, Any]:
        """Tensors and numbers beside the model's own, for a checkpoint."""
        ...

    def load_state(self, state: dict[str, Any], /) -> None:
        """Go on from what `state` gave."""
        ...

    def save(self, folder: Path, base: str, identity: str, /) -> None:
        """Write an adapter's folder, given the address and the identity of the base."""
        ...

    def merged(self) -> Any:
        """The model with ordinary layers, which computes the same."""
        ...


@dataclass(frozen=True)
class ParametrizationKind:
    """A parametrization: its options, and what replaces the layers."""

    apply: "Callable[[Any, RunOptions, Mapping[int, str]], Parametrized]"
    """From a model, the options of the run and what every parameter is (`spectra_pretrain.kinds`)
    to the model with its layers replaced, frozen where they are not trained."""
    settings: type[Settings] = Settings
    """Its own options."""


PARAMETRIZATIONS: Registry[ParametrizationKind] = Registry(
    "parametrization",
    {
        DENSE: Entry("layers as they are", "spectra_pretrain.parametrizations.dense:DENSE"),
        "lora": Entry(
            "adapters on all linear layers of the blocks",
            "spectra_pretrain.parametrizations.adapters:LORA",
        ),
        "dora": Entry(
            "LoRA with magnitudes of their own", "spectra_pretrain.parametrizations.adapters:DORA"
        ),
        PEFT: Entry(
            "adapters of a configuration of peft", "spectra_pretrain.parametrizations.adapters:PEFT"
        ),
    },
)

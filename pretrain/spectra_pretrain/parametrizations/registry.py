"""The parametrizations that `--train` names besides the model's own layers."""

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
    """A model with the layers of a parametrization.

    A layer that holds its matrix in parts has a `product` (see `spectra.composites`), so that the
    recorder, maps and reports see the matrix that it represents.
    """

    model: Any
    """Model with the layers in it; its parameters say whether they are trained."""
    kept: tuple[str, ...]
    """Names, in the model's state, of all tensors that training or preparing it changes."""

    def weights(self) -> "Mapping[Matrix, Weight]":
        """The effective weight of every matrix."""
        ...

    def after_step(self, step: int, /) -> None:
        """Called between the optimizer's step and the clearing of gradients."""
        ...

    def state(self) -> dict[str, Any]:
        """Tensors and numbers for a checkpoint, in addition to the model's own."""
        ...

    def load_state(self, state: dict[str, Any], /) -> None:
        """Restore what `state` returned."""
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
    """Replaces the layers of a model, and freezes those that are not trained; also gets the options
    of the run and the kind of every parameter (`spectra_pretrain.kinds`)."""
    settings: type[Settings] = Settings
    """Class of its own options."""


PARAMETRIZATIONS: Registry[ParametrizationKind] = Registry(
    "parametrization",
    {
        DENSE: Entry("the model's own layers", "spectra_pretrain.parametrizations.dense:DENSE"),
        "lora": Entry(
            "adapters on all linear layers of the blocks",
            "spectra_pretrain.parametrizations.adapters:LORA",
        ),
        "dora": Entry(
            "LoRA with separate magnitudes", "spectra_pretrain.parametrizations.adapters:DORA"
        ),
        PEFT: Entry(
            "adapters of a peft configuration", "spectra_pretrain.parametrizations.adapters:PEFT"
        ),
    },
)

"""The model's own layers, of which all or some are trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spectra.matrices import Matrix, Weight, find_matrices
from spectra.models.adapter import save_changed
from spectra_data.errors import InputError
from spectra_pretrain.kinds import IN_BLOCKS, LRC, NLRC, NORMS
from spectra_pretrain.parametrizations.registry import ParametrizationKind
from spectra_pretrain.precision import set_precision

if TYPE_CHECKING:
    from spectra_pretrain.options import RunOptions
    from spectra_pretrain.ways import TrainedOptions


class DenseLayers:
    """A model's own layers, compressed ones included."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._trained: dict[str, torch.nn.Parameter] = {
            name: p for name, p in model.named_parameters() if p.requires_grad
        }
        self.kept = tuple(self._trained)

    def weights(self) -> Mapping[Matrix, Weight]:
        """See `Parametrized`."""
        return find_matrices(self.model)[0]

    def after_step(self, step: int, /) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Any]:
        """See `Parametrized`; it is empty."""
        return {}

    def load_state(self, state: dict[str, Any], /) -> None:
        """Do nothing."""

    def save(self, folder: Path, base: str, identity: str, /) -> None:
        """See `Parametrized`."""
        save_changed(folder, base, identity, self._trained)

    def merged(self) -> Any:
        """See `Parametrized`."""
        return self.model


def apply(model: Any, options: "RunOptions", kinds: Mapping[int, str]) -> DenseLayers:
    """Freeze what is not trained.

    Raises
    ------
    InputError
        When the model has nothing to train.
    """
    wanted = _wanted(options.trained)
    for parameter in model.parameters():
        parameter.requires_grad_(wanted is None or kinds[id(parameter)] in wanted)
    if not any(kinds[id(p)] in IN_BLOCKS for p in model.parameters() if p.requires_grad):
        raise InputError(f"the model has no {options.trained.train.upper()} to train")
    set_precision(model, options)
    return DenseLayers(model)


def _wanted(trained: "TrainedOptions") -> frozenset[str] | None:
    """The kinds that are trained; None for all."""
    matrices = {"lrc": LRC, "nlrc": NLRC}.get(trained.train)
    if matrices is None:
        return None
    return frozenset((matrices, *(() if trained.norms == "freeze" else (NORMS,))))


DENSE = ParametrizationKind(apply)

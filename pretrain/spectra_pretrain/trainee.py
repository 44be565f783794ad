"""From a model to one of which the right parameters are trained, and back.

Trained parameters become float32 masters (or bfloat16, for stochastic rounding); all others stay
in bfloat16, or float32 where that is the precision of the run, and get neither gradients nor
optimizer state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spectra.allocation.rankmap import RankMap
from spectra_data.errors import InputError
from spectra_pretrain.kinds import kinds_of, matrices_of
from spectra_pretrain.memory import Group, groups_of
from spectra_pretrain.optimizers import choice
from spectra_pretrain.options import RunOptions
from spectra_pretrain.parametrizations.registry import PARAMETRIZATIONS, Parametrized


@dataclass(frozen=True)
class Trainee:
    """A model that is ready to be trained."""

    layers: Parametrized
    kinds: dict[int, str]
    """What its parameters are, by identity; those of adapters are left out."""

    @property
    def model(self) -> Any:
        """With the layers in it."""
        return self.layers.model

    def optimizer(self, options: RunOptions) -> torch.optim.Optimizer:
        """The optimizer that the options name, over what is trained."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return choice.optimizer_of(options, trained, matrices_of(self.model, self.kinds))

    def groups(self, options: RunOptions) -> list[Group]:
        """What is trained and what is not, with the memory that each takes."""
        matrices = matrices_of(self.model, self.kinds)
        return groups_of(
            self.model,
            self.kinds,
            lambda p: choice.state_bytes(options, p, is_matrix=id(p) in matrices),
        )


def make_trainee(options: RunOptions, model: Any, rank_map: RankMap | None) -> Trainee:
    """Freeze, unfreeze and replace layers of a model as asked.

    Raises
    ------
    InputError
        When the model has nothing of what is to be trained.
    """
    if options.trained.needs_map and rank_map is None:
        raise InputError(
            f"--train {options.trained.train} needs a rank map, which says which matrices are "
            "LRCs: that of a checkpoint that `spectra compress` wrote, or --map MAP"
        )
    kinds = kinds_of(model, rank_map)
    return Trainee(
        PARAMETRIZATIONS[options.trained.parametrization].apply(model, options, kinds), kinds
    )


def held_state(trainee: Trainee) -> dict[str, torch.Tensor]:
    """What a checkpoint of the run holds of the model, by name."""
    state: Mapping[str, torch.Tensor] = trainee.model.state_dict()
    return {name: state[name] for name in trainee.layers.kept}


def load_held_state(trainee: Trainee, held: Mapping[str, torch.Tensor]) -> None:
    """Put back what `held_state` gave.

    Raises
    ------
    InputError
        When it is of another model.
    """
    state: Mapping[str, torch.Tensor] = trainee.model.state_dict()
    if set(held) != set(trainee.layers.kept) or any(
        state[n].shape != v.shape for n, v in held.items()
    ):
        raise InputError("the run's checkpoint is of another model than its base: begin anew")
    with torch.no_grad():
        for name, value in held.items():
            state[name].copy_(value)

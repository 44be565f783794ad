"""A model whose right parameters are trained, and the state of it that a checkpoint holds.

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
    """Kinds of its parameters, by identity; those of adapters are left out."""

    @property
    def model(self) -> Any:
        """The model with its layers."""
        return self.layers.model

    def optimizer(self, options: RunOptions) -> torch.optim.Optimizer:
        """The optimizer that the options name, over the trained parameters."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return choice.optimizer_of(options, trained, matrices_of(self.model, self.kinds))

    def groups(self, options: RunOptions) -> list[Group]:
        """Trained and frozen parameters by kind, with the memory of each."""
        matrices = matrices_of(self.model, self.kinds)
        return groups_of(
            self.model,
            self.kinds,
            lambda p: choice.state_bytes(options, p, is_matrix=id(p) in matrices),
        )


def make_trainee(options: RunOptions, model: Any, rank_map: RankMap | None) -> Trainee:
    """Freeze, unfreeze and replace layers of a model as the options say.

    Raises
    ------
    InputError
        When the model has nothing to train.
    """
    if options.trained.needs_map and rank_map is None:
        raise InputError(
            f"--train {options.trained.train} needs a rank map, which says which matrices are "
            "LRCs: name a checkpoint of `spectra compress`, or add --map MAP"
        )
    kinds = kinds_of(model, rank_map)
    return Trainee(
        PARAMETRIZATIONS[options.trained.parametrization].apply(model, options, kinds), kinds
    )


def held_state(trainee: Trainee) -> dict[str, torch.Tensor]:
    """The tensors of the model that a checkpoint of the run holds, by name."""
    state: Mapping[str, torch.Tensor] = trainee.model.state_dict()
    return {name: state[name] for name in trainee.layers.kept}


def load_held_state(trainee: Trainee, held: Mapping[str, torch.Tensor]) -> None:
    """Restore what `held_state` returned.

    Raises
    ------
    InputError
        When it belongs to another model.
    """
    state: Mapping[str, torch.Tensor] = trainee.model.state_dict()
    if set(held) != set(trainee.layers.kept) or any(
        state[n].shape != v.shape for n, v in held.items()
    ):
        raise InputError("the run's checkpoint does not fit its base model: start a new run")
    with torch.no_grad():
        for name, value in held.items():
            state[name].copy_(value)

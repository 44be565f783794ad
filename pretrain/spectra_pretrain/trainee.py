"""From a checkpoint's model to one of which the right parameters are trained, and back.

Trained parameters become float32 masters (or bfloat16, for stochastic rounding); all others stay
in bfloat16, or float32 where that is the precision of the run, and get neither gradients nor
optimizer state.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from spectra.allocation.rankmap import RankMap
from spectra.compression.adapter import save_changed
from spectra_data.errors import InputError
from spectra_pretrain.finetuning.options import METHODS, FinetuneOptions, TrainedOptions
from spectra_pretrain.loop import Method, PlainMethod
from spectra_pretrain.memory import LRC, MATRICES, NLRC, NORMS, kinds_of
from spectra_pretrain.optimizers.galore import GaLoreAdamW, is_projected
from spectra_pretrain.optimizers.stochastic import StochasticAdamW


@dataclass(frozen=True)
class Trainee:
    """A model that is ready to be trained."""

    model: Any
    kinds: dict[int, str]
    """What its parameters are, by identity; those of adapters are left out."""
    kept: tuple[str, ...]
    """Names, in its state, of all that training or preparing it has changed."""
    save: Callable[[Path, str, str], None]
    """Write an adapter's folder, given the base's address and identity."""
    method: Method = field(default_factory=PlainMethod)


def make_trainee(options: FinetuneOptions, model: Any, rank_map: RankMap | None) -> Trainee:
    """Freeze and unfreeze a checkpoint's model as asked.

    Raises
    ------
    InputError
        When the checkpoint has nothing of what is to be trained.
    """
    if options.trained.train not in METHODS or options.trained.train in ("lora", "dora"):
        from spectra_pretrain.parametrizations.adapters import adapted

        return adapted(options, model, kinds_of(model, rank_map))
    kinds = kinds_of(model, rank_map)
    wanted = _wanted(options.trained, rank_map)
    for parameter in model.parameters():
        parameter.requires_grad_(wanted is None or kinds[id(parameter)] in wanted)
    if not any(
        kinds[id(p)] in (LRC, NLRC, MATRICES) for p in model.parameters() if p.requires_grad
    ):
        raise InputError(f"the checkpoint has no {options.trained.train.upper()} to train")
    set_precision(model, options)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def save(folder: Path, base: str, identity: str) -> None:
        save_changed(folder, base, identity, trained)

    return Trainee(model, kinds, tuple(trained), save)


def set_precision(model: torch.nn.Module, options: FinetuneOptions) -> None:
    """Trained parameters as masters, frozen ones in the precision of the run; buffers stay.

    Frozen vectors, of norms say, are float32: they are small, and meet float32.
    """
    frozen = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    masters = torch.bfloat16 if options.trained.masters == "bfloat16" else torch.float32
    for parameter in model.parameters():
        if parameter.is_floating_point():
            alone = frozen if parameter.ndim > 1 else torch.float32
            dtype = masters if parameter.requires_grad else alone
            parameter.data = parameter.data.to(dtype)


def optimizer_of(options: FinetuneOptions, trainee: Trainee) -> torch.optim.Optimizer:
    """AdamW over what is trained; GaLore's, or one that rounds at random, where asked for."""
    chosen, trained = options.optimizer, options.trained
    parameters = [p for p in trainee.model.parameters() if p.requires_grad]
    common: dict[str, Any] = {
        "lr": chosen.learning_rate,
        "betas": (chosen.beta1, chosen.beta2),
        "weight_decay": chosen.weight_decay,
    }
    if trained.train == "galore":
        matrices = [p for p in parameters if trainee.kinds[id(p)] in (LRC, NLRC, MATRICES)]
        projected = {id(p) for p in matrices if is_projected(p, trained.galore_rank)}
        how = {
            "rank": trained.galore_rank,
            "every": trained.galore_every,
            "scale": trained.galore_scale,
            "randomized": trained.galore_projection == "randomized",
        }
        groups = [{"params": [p for p in parameters if id(p) in projected], **how}]
        groups.append({"params": [p for p in parameters if id(p) not in projected]})
        return GaLoreAdamW([group for group in groups if group["params"]], **common)
    if trained.masters == "bfloat16":
        return StochasticAdamW(parameters, **common)
    return torch.optim.AdamW(parameters, **common, fused=True)


def held_state(trainee: Trainee) -> dict[str, torch.Tensor]:
    """What a checkpoint of the run holds of the model, by name."""
    state: Mapping[str, torch.Tensor] = trainee.model.state_dict()
    return {name: state[name] for name in trainee.kept}


def load_held_state(trainee: Trainee, held: Mapping[str, torch.Tensor]) -> None:
    """Put back what `held_state` gave.

    Raises
    ------
    InputError
        When it is of another model.
    """
    state: Mapping[str, torch.Tensor] = trainee.model.state_dict()
    if set(held) != set(trainee.kept) or any(state[n].shape != v.shape for n, v in held.items()):
        raise InputError("the run's checkpoint is of another model than its base: begin anew")
    with torch.no_grad():
        for name, value in held.items():
            state[name].copy_(value)


def _wanted(trained: TrainedOptions, rank_map: RankMap | None) -> frozenset[str] | None:
    """The kinds that are trained; None for all."""
    kinds: dict[str, Literal["LRCs", "N-LRCs"]] = {"lrc": "LRCs", "nlrc": "N-LRCs"}
    if trained.train not in kinds:
        return None
    if rank_map is None:
        raise InputError(
            f"--train {trained.train} needs a checkpoint that `spectra compress` wrote, whose rank "
            "map says which matrices are LRCs"
        )
    norms = () if trained.norms == "freeze" else (NORMS,)
    return frozenset((kinds[trained.train], *norms))

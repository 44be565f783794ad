"""From a model and data to a training before its first step: the same for every kind of run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from spectra.allocation.rankmap import RankMap
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.compression.fit import require_fit
from spectra_data.errors import InputError
from spectra_data.tasks import Example
from spectra_pretrain.batches import Batch, Batches, Validation, moved
from spectra_pretrain.headloss import objective_of
from spectra_pretrain.loop import Objective, Training, own_loss
from spectra_pretrain.machine import checkpoint_activations, set_attention
from spectra_pretrain.options import RunOptions
from spectra_pretrain.trainee import Trainee, held_state, load_held_state, make_trainee

HELD = "trained.safetensors"
"""What a checkpoint holds of the model, where that is not all of it."""


@dataclass(frozen=True)
class Data:
    """What a run is trained and validated on."""

    train: Batches
    validation: Validation
    probe: torch.Tensor | Batch
    about: str
    """In words."""
    manifest: dict[str, Any]
    asked: Sequence[Example] = ()
    """A task's test questions."""

    @property
    def sample(self) -> Batch:
        """The probe as a batch, on which ways to compute the loss are compared."""
        if isinstance(self.probe, torch.Tensor):
            return {"input_ids": self.probe, "labels": self.probe}
        return self.probe


def prepare_trainee(
    options: RunOptions, model: Any, rank_map: RankMap | None, device: torch.device
) -> Trainee:
    """A model, ready to be trained on a device.

    Raises
    ------
    InputError
        When the model does not fit what is asked.
    """
    if options.trained.map is not None:
        rank_map = RankMap.load(options.trained.map)
        require_fit(rank_map, open_checkpoint(model), weights=False)
    trainee = make_trainee(options, model, rank_map)
    torch.nn.Module.to(trainee.model, device).train()
    set_attention(model, options, device)
    embeddings = model.get_input_embeddings()
    if options.precision == "bfloat16" and embeddings.weight.dtype != torch.float32:
        # the stream of residuals is float32, as it is where embeddings are masters
        embeddings.register_forward_hook(lambda module, inputs, out: out.float())
    if options.machine.activation_checkpointing:
        model.enable_input_require_grads()
        checkpoint_activations(model)
    torch.manual_seed(options.seed)  # for what steps draw: dropout, rounding, projections
    return trainee


def training_of(
    options: RunOptions,
    trainee: Trainee,
    data: Data,
    device: torch.device,
    *,
    objective: Objective | None = None,
    from_checkpoint: bool = False,
) -> Training:
    """A model before its first step.

    Parameters
    ----------
    options, trainee, data, device
        The run's.
    objective
        The loss; by default the model's own, computed behind a frozen head where that is the same.
    from_checkpoint
        Whether the first weights are worth an evaluation.
    """
    if objective is None and options.machine.compile:
        objective = own_loss
    elif objective is None:
        reduced = options.precision == "bfloat16"
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=reduced)
        objective = objective_of(trainee.model, moved(data.sample, device), autocast)
    return Training(
        options,
        trainee.model,
        trainee.optimizer(options),
        data.train,
        data.validation,
        objective=objective,
        layers=trainee.layers,
        from_checkpoint=from_checkpoint,
    )


def write_held(trainee: Trainee, folder: Path) -> None:
    """Write what training has changed of a model into a checkpoint's folder."""
    state = held_state(trainee)
    save_file({n: v.detach().cpu().contiguous() for n, v in state.items()}, folder / HELD)


def read_held(trainee: Trainee, folder: Path) -> None:
    """Put back what `write_held` wrote.

    Raises
    ------
    InputError
        When it cannot be read, or is of another model.
    """
    file = folder / HELD
    try:
        held = load_file(file)
    except Exception as error:  # of the disk or of safetensors
        raise InputError(f"{file} cannot be read ({error}): remove {folder}") from error
    load_held_state(trainee, held)

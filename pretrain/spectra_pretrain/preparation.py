"""Prepares a training from a model and data: the same for every kind of run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from spectra.allocation.rankmap import RankMap
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.compression.fit import require_fit
from spectra.store.weights import write_weights
from spectra_data.errors import InputError
from spectra_data.tasks import Example
from spectra_pretrain.batches import Batch, Batches, Validation, moved
from spectra_pretrain.headloss import objective_of
from spectra_pretrain.loop import Objective, Training, own_loss
from spectra_pretrain.machine import checkpoint_activations, set_attention
from spectra_pretrain.options import RunOptions
from spectra_pretrain.trainee import Trainee, held_state, load_held_state, make_trainee

HELD = "trained.safetensors"
"""File of a checkpoint with the tensors that training changes, if it does not hold the model."""


@dataclass(frozen=True)
class Data:
    """Data that a run is trained and validated on."""

    train: Batches
    validation: Validation
    probe: torch.Tensor | Batch
    about: str
    """Description of the data, in words."""
    manifest: dict[str, Any]
    test_questions: Sequence[Example] = ()
    """Test questions of a task."""

    @property
    def sample(self) -> Batch:
        """The probe as a batch, on which two computations of the loss are compared."""
        if isinstance(self.probe, torch.Tensor):
            return {"input_ids": self.probe, "labels": self.probe}
        return self.probe


def prepare_trainee(
    options: RunOptions, model: Any, rank_map: RankMap | None, device: torch.device
) -> Trainee:
    """Prepare a model to be trained on a device.

    Raises
    ------
    InputError
        When the model does not fit the options.
    """
    if options.trained.map is not None:
        rank_map = RankMap.load(options.trained.map)
        require_fit(rank_map, open_checkpoint(model), weights=False)
    trainee = make_trainee(options, model, rank_map)
    torch.nn.Module.to(trainee.model, device).train()
    set_attention(model, options, device)
    embeddings = model.get_input_embeddings()
    if options.reduced and embeddings.weight.dtype != torch.float32:
        # the residual stream is float32, as it is with embeddings that are masters
        embeddings.register_forward_hook(lambda module, inputs, out: out.float())
    if options.machine.activation_checkpointing:
        model.enable_input_require_grads()
        checkpoint_activations(model)
    torch.manual_seed(options.seed)  # steps draw for dropout, rounding and projections
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
    """A training before its first step.

    Parameters
    ----------
    options, trainee, data, device
        Those of the run.
    objective
        Loss; by default the model's own, computed behind a frozen head if that is the same.
    from_checkpoint
        Whether the initial weights are trained, and so worth an evaluation.
    """
    if objective is None and options.machine.compile:
        objective = own_loss
    elif objective is None:
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.reduced)
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
    """Write the tensors of a model that training changes into a checkpoint's folder."""
    write_weights(folder / HELD, held_state(trainee))


def read_held(trainee: Trainee, folder: Path) -> None:
    """Restore what `write_held` wrote.

    Raises
    ------
    InputError
        When it cannot be read, or belongs to another model.
    """
    file = folder / HELD
    try:
        held = load_file(file)
    except Exception as error:  # from the disk or safetensors
        raise InputError(f"{file} cannot be read ({error}): remove {folder}") from error
    load_held_state(trainee, held)

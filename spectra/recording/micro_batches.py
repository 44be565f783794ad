"""The probe batch in micro-batches, whose weighted losses add up to the loss of all of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spectra_data.errors import InputError

Batch = Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
"""The arguments of a model's forward pass, by name or in order."""
Probe = torch.Tensor | Batch | Callable[[torch.nn.Module], torch.Tensor]
"""Token ids (windows, length); or a batch of arguments whose output has a loss; or a function of
the model that returns the mean loss (with several processes, of each one's share)."""


@dataclass(frozen=True)
class MicroBatch:
    """Some windows of the probe batch."""

    batch: Batch | Callable[[torch.nn.Module], torch.Tensor]
    weight: float = 1.0
    """Share of the tokens in the mean loss."""

    def loss(self, model: torch.nn.Module) -> torch.Tensor:
        """Mean loss of the micro-batch.

        Raises
        ------
        InputError
            When the model returns no scalar loss.
        """
        if isinstance(self.batch, Mapping):
            return loss_in(model(**_arguments(model, self.batch)))
        if isinstance(self.batch, Sequence):
            device = next(model.parameters()).device
            return loss_in(model(*(value.to(device) for value in self.batch)))
        return loss_in(self.batch(model))


def loss_in(output: Any) -> torch.Tensor:
    """The loss in a model's output: its ``.loss``, the only number in a tuple, or all of it.

    Raises
    ------
    InputError
        When the output has no scalar loss.
    """
    loss = output["loss"] if isinstance(output, Mapping) and "loss" in output else output
    loss = getattr(loss, "loss", loss)
    if isinstance(loss, Sequence):  # (loss, logits) as in transformers, (logits, loss) elsewhere
        numbers = [v for v in loss if isinstance(v, torch.Tensor) and v.ndim == 0]
        loss = numbers[0] if len(numbers) == 1 else None
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise InputError(
            "the probe batch yields no scalar loss: pass token ids, a batch with labels whose "
            "output has `.loss`, or a function of the model that returns the loss"
        )
    return loss


def micro_batches(
    model: torch.nn.Module,
    probe: Probe,
    tokens: int | None = None,
    *,
    rank: int = 0,
    processes: int = 1,
    everyone: bool = False,
) -> list[MicroBatch]:
    """One process's share of the probe batch, in micro-batches.

    Only the batch of a causal language model is split, since its loss is known to be a mean over
    the labels that are not -100. Any other batch is one micro-batch, of the first process; a
    function is called in every process, for the mean over them.

    Parameters
    ----------
    model
        The model that the batch is for.
    probe
        The whole batch.
    tokens
        Largest number of tokens in a micro-batch of at least one window; None to split nothing.
    rank, processes
        Index of the share, and number of shares.
    everyone
        Whether every process gets exactly one micro-batch, of weight 0 if need be.
    """
    if isinstance(probe, torch.Tensor):
        probe = {"input_ids": probe}
    if isinstance(probe, Sequence):
        if everyone:
            return [MicroBatch(probe, 1 / processes)]
        return [MicroBatch(probe)] if rank == 0 else []
    if not isinstance(probe, Mapping):
        return [MicroBatch(probe, 1 / processes)]
    batch = _with_labels(probe)
    valid = _valid_labels(batch) if _divisible(model, batch) else None
    if valid is None or valid.sum() == 0:
        if everyone:
            return [MicroBatch(batch, 1 / processes)]
        return [MicroBatch(batch)] if rank == 0 else []
    own = torch.arange(len(valid))[rank::processes]
    if everyone and len(own) == 0:
        return [MicroBatch({name: value[:1] for name, value in batch.items()}, 0.0)]
    length = batch["input_ids"].shape[1]
    size = len(own) if tokens is None else max(1, tokens // length)
    return [
        MicroBatch(
            {name: value[windows.to(value.device)] for name, value in batch.items()},
            float(valid[windows].sum() / valid.sum()),
        )
        for windows in torch.split(own, max(1, size))
        if everyone or valid[windows].sum() > 0
    ]


def _valid_labels(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Number of labels that count in each window: (windows,)."""
    return (batch["labels"][:, 1:] != -100).sum(dim=1).double().cpu()


def _divisible(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> bool:
    causal = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    # a balancing loss over all tokens of the batch is not the mean of the micro-batches' losses
    balanced = getattr(getattr(model, "config", None), "output_router_logits", False)
    windows = {value.shape[0] if value.ndim else 0 for value in batch.values()}
    return causal and not balanced and len(windows) == 1 and "labels" in batch


def _with_labels(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    complete = dict(batch)
    if "labels" not in complete and "input_ids" in complete:
        labels = complete["input_ids"]
        if "attention_mask" in complete:
            labels = labels.masked_fill(complete["attention_mask"] == 0, -100)
        complete["labels"] = labels
    return complete


def _arguments(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    device = next(model.parameters()).device
    arguments: dict[str, Any] = {name: value.to(device) for name, value in batch.items()}
    if hasattr(getattr(model, "config", None), "use_cache"):
        arguments.setdefault("use_cache", False)
    return arguments

"""Loss on the validation part."""

from contextlib import AbstractContextManager
from typing import Any

import torch

from spectra_pretrain.batches import Validation, labels_of, moved


@torch.no_grad()
def validation_loss(
    model: torch.nn.Module, validation: Validation, *, autocast: AbstractContextManager[Any]
) -> float:
    """Mean cross-entropy in nats over the labels of all validation batches.

    Parameters
    ----------
    model
        A causal language model of transformers.
    validation
        The batches.
    autocast
        Context that sets the precision to compute in.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, labels = 0.0, 0
    with autocast:
        for batch in validation.batches():
            loss = model(**moved(batch, device), use_cache=False).loss
            count = labels_of(batch)
            total += loss.item() * count
            labels += count
    model.train(was_training)
    return total / labels

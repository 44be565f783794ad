"""Loss on the validation part."""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from data.windows import Windows


@torch.no_grad()
def validation_loss(
    model: torch.nn.Module,
    windows: Windows,
    *,
    tokens: int,
    batch_size: int,
    autocast: AbstractContextManager[Any],
) -> float:
    """Mean cross-entropy in nats over the inner tokens of the first windows.

    Parameters
    ----------
    model
        A causal language model of transformers.
    windows
        The validation part.
    tokens
        Evaluate so many tokens, rounded down to windows, or all that there are.
    batch_size
        Windows at a time.
    autocast
        The precision to compute in.
    """
    count = min(len(windows), max(1, tokens // windows.length))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total = 0.0
    with autocast:
        for first in range(0, count, batch_size):
            indices = np.arange(first, min(first + batch_size, count))
            batch = torch.from_numpy(windows.read(indices)).to(device)
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            total += loss.item() * len(indices)
    model.train(was_training)
    return total / count

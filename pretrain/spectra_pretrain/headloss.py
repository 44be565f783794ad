"""Cross-entropy behind an output head that is not trained, without keeping the logits.

A frozen head needs only the gradient of its input, which is known as soon as the logits are. So the
forward pass predicts and compares a few hundred tokens at a time, without memory for all logits and
their gradients. It trades away anything that a model does with its logits beyond the head's
product, and is used only if both losses agree on a sample.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from spectra_pretrain.batches import Batch, labels_of
from spectra_pretrain.loop import Objective, own_loss

TOKENS_AT_ONCE = 512
IGNORED = -100
CLOSE = 0.005
"""Relative tolerance; bfloat16 rounds by 0.4 % at most."""


def objective_of(model: Any, sample: Batch, autocast: AbstractContextManager[Any]) -> Objective:
    """The model's own loss, or the same loss computed behind a frozen head.

    Parameters
    ----------
    model
        A causal language model of transformers, or one with adapters.
    sample
        A batch on which both losses are compared.
    autocast
        The precision to compute in.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = inner.get_output_embeddings()
    body = getattr(inner, inner.base_model_prefix, None)
    if head is None or body is None or head.weight.requires_grad or head.bias is not None:
        return own_loss
    ours = HeadLoss(body, head.weight)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast:
            expected = model(**sample, use_cache=False)
            found = ours(model, sample)
            logits = ours.logits(sample)
    finally:
        model.train(training)
    same = (logits - expected.logits).norm() <= CLOSE * expected.logits.norm()
    # a method may add terms of its own to the loss
    same &= (found - expected.loss).abs() <= CLOSE * expected.loss.abs()
    return ours if bool(same) else own_loss


class HeadLoss:
    """An objective: mean cross-entropy of the next token."""

    def __init__(self, body: Any, weight: torch.Tensor) -> None:
        self._body, self._weight = body, weight

    def __call__(self, forward: Callable[..., Any], batch: Batch) -> torch.Tensor:
        """Loss of a batch; labels of -100 do not count."""
        hidden = self._hidden(batch)
        targets = batch["labels"][:, 1:].flatten()
        rows = hidden[:, :-1].flatten(0, 1)  # (tokens, hidden)
        loss: torch.Tensor = _CrossEntropy.apply(
            rows[targets != IGNORED], self._weight, targets[targets != IGNORED]
        )
        return loss if labels_of(batch) else hidden.sum() * 0

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits from the head's product."""
        return self._hidden(batch).to(self._weight.dtype) @ self._weight.mT

    def _hidden(self, batch: Batch) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        hidden: torch.Tensor = self._body(**inputs, use_cache=False).last_hidden_state
        return hidden


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        total = torch.zeros((), device=hidden.device)
        for first in range(0, len(hidden), TOKENS_AT_ONCE):
            part = slice(first, first + TOKENS_AT_ONCE)
            own = targets[part, None]
            logits = (hidden[part].to(weight.dtype) @ weight.mT).float()
            peak = logits.amax(dim=-1, keepdim=True)
            logits.sub_(peak)
            of_targets = logits.gather(1, own)
            sums = logits.exp_().sum(dim=-1, keepdim=True)
            total += (sums.log() - of_targets).sum()
            if gradient is not None:
                softmax = logits.div_(sums)
                softmax.scatter_add_(1, own, torch.full_like(sums, -1.0))
                gradient[part] = (softmax.to(weight.dtype) @ weight).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        ctx.count = max(1, len(hidden))
        mean: torch.Tensor = total / ctx.count
        return mean

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * (outputs[0] / ctx.count), None, None

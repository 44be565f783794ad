"""Finds where a loss or a gradient stopped being finite."""

from collections.abc import Sequence
from typing import Any

import torch

from spectra_pretrain.batches import Batch


class NonFiniteError(RuntimeError):
    """Training met a NaN or an infinity; the message names the step and the place."""


def first_non_finite(
    model: torch.nn.Module, micro_batches: Sequence[Batch], loss_is_finite: bool
) -> str:
    """Name the place where the NaN or infinity of these micro-batches comes from."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight {name} is not finite"
    if not loss_is_finite:
        found = (_first_output(model, micro_batch) for micro_batch in micro_batches)
        module_name = next(filter(None, found), None)
        if module_name is None:
            return "every layer's output is finite, only the loss is not"
        return f"the output of {module_name} is not finite"
    bad = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    if not bad:
        return "every gradient is finite, but their norm is not"
    # the backward pass runs from the last layer to the first: it went wrong in the last one named
    return f"the gradient of {bad[-1]} is not finite (the first of {len(bad)} in backward order)"


@torch.no_grad()
def _first_output(model: torch.nn.Module, batch: Batch) -> str | None:
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor) and not found and not tensor.isfinite().all():
                found.append(name)

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None

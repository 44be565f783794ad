"""The gradient on the probe batch, taken beside the training without touching it.

The parameters are replaced by detached float32 aliases for the length of one forward and one
backward pass, so `.grad`, the hooks on parameters, frozen parameters and data-parallel buckets take
no part in it. Autocast is off, because bfloat16 rounding looks like a spectral tail; the random
state is forked; dropout is off and the modules' train or eval state is put back.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from data.errors import InputError
from spectra.matrices import unwrapped

Probe = torch.Tensor | Mapping[str, torch.Tensor] | Callable[[Callable[..., Any]], torch.Tensor]
"""Token ids (windows, length); or a batch of keyword arguments whose output has a loss; or a
function that is given the model as a callable and returns the mean loss."""


def probe_gradients(
    model: torch.nn.Module, probe: Probe, parameters: list[torch.nn.Parameter]
) -> list[torch.Tensor | None]:
    """Gradients of the mean probe loss with respect to `parameters`, in float32.

    Parameters
    ----------
    model
        Any module, wrapped or not.
    probe
        The fixed batch.
    parameters
        Parameters of `model`.

    Returns
    -------
    A gradient for every parameter, in its shape; None where the loss does not depend on it.

    Raises
    ------
    InputError
        When the model gives no scalar loss for this probe.
    """
    model = unwrapped(model)
    aliases = {name: _alias(p) for name, p in model.named_parameters()}
    state = aliases | {
        name: b.float() if b.is_floating_point() else b for name, b in model.named_buffers()
    }
    names = {id(p): name for name, p in model.named_parameters()}
    wanted = [aliases[names[id(p)]] for p in parameters]
    for alias in wanted:
        alias.requires_grad_()

    def call(*args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(model, state, args, kwargs)

    with _undisturbed(model):
        loss = _loss(model, call, probe)
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [None if g is None else g.detach() for g in gradients]


def probe_sha256(probe: Probe) -> str | None:
    """Hash of the probe batch; None for a function, whose data cannot be seen."""
    if isinstance(probe, torch.Tensor):
        probe = {"input_ids": probe}
    if not isinstance(probe, Mapping):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(probe.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _alias(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The values as a leaf of their own: shared memory, or float32 for shorter floats."""
    detached = parameter.detach()
    return detached.float() if detached.is_floating_point() else detached


def _loss(model: torch.nn.Module, call: Callable[..., Any], probe: Probe) -> torch.Tensor:
    if isinstance(probe, torch.Tensor):
        probe = {"input_ids": probe}
    if isinstance(probe, Mapping):
        output = call(**_complete(model, probe))
        loss = getattr(output, "loss", output)
    else:
        loss = probe(call)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise InputError(
            "the probe batch gave no scalar loss: pass token ids, a batch with labels whose output "
            "has `.loss`, or a function of the model that returns the loss"
        )
    return loss


def _complete(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    device = next(model.parameters()).device
    inputs: dict[str, Any] = {name: value.to(device) for name, value in batch.items()}
    if "labels" not in inputs and "input_ids" in inputs:
        labels = inputs["input_ids"]
        if "attention_mask" in inputs:
            labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
        inputs["labels"] = labels
    if hasattr(getattr(model, "config", None), "use_cache"):
        inputs.setdefault("use_cache", False)
    return inputs


@contextlib.contextmanager
def _undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Gradients on, autocast and compilation off, dropout off; everything put back afterwards."""
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    training = {module: module.training for module in model.modules()}
    with (
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices),
        torch.compiler.set_stance("force_eager"),
    ):
        model.eval()
        try:
            yield
        finally:
            for module, mode in training.items():
                module.training = mode

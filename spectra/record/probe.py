"""The gradient on the probe batch, taken beside the training without touching it.

The parameters are replaced by detached float32 aliases for the length of one forward and one
backward pass, so `.grad`, the hooks on parameters, frozen parameters and data-parallel buckets take
no part in it; forward hooks on modules do see it. Autocast is off, because bfloat16 rounding
looks like a spectral tail; the random state is forked; dropout is off and the modules' train or
eval state is put back.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from data.errors import InputError
from spectra.matrices import unwrapped

Probe = torch.Tensor | Mapping[str, torch.Tensor] | Callable[[torch.nn.Module], torch.Tensor]
"""Token ids (windows, length); or a batch of keyword arguments whose output has a loss; or a
function of the model that returns the mean loss."""


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
    names = {id(p): name for name, p in model.named_parameters()}
    aliases = {name: _alias(p) for name, p in model.named_parameters()}
    wanted = [aliases[names[id(p)]].requires_grad_() for p in parameters]
    state: dict[str, torch.Tensor] = aliases | {n: _alias(b) for n, b in model.named_buffers()}
    with _undisturbed(model):
        gradients = torch.func.functional_call(
            _ProbePass(model, probe, wanted), {f"model.{n}": t for n, t in state.items()}, ()
        )
    return [None if g is None else g.detach() for g in gradients]


class _ProbePass(torch.nn.Module):
    """Forward and backward in one call: recomputed activations must meet the same aliases."""

    def __init__(self, model: torch.nn.Module, probe: Probe, wanted: list[torch.Tensor]) -> None:
        super().__init__()
        self.model = model
        self.probe, self.wanted = probe, wanted

    def forward(self) -> tuple[torch.Tensor | None, ...]:
        loss = _loss(self.model, self.probe)
        return torch.autograd.grad(loss, self.wanted, allow_unused=True)


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


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """The values as a leaf of their own: shared memory, or float32 for shorter floats."""
    detached = tensor.detach()
    short = detached.dtype in (torch.bfloat16, torch.float16)
    return detached.float() if short else detached


def _loss(model: torch.nn.Module, probe: Probe) -> torch.Tensor:
    if isinstance(probe, torch.Tensor):
        probe = {"input_ids": probe}
    if isinstance(probe, Mapping):
        output = model(**_complete(model, probe))
        loss = getattr(output, "loss", output)
    else:
        loss = probe(model)
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
    matmul = torch.get_float32_matmul_precision()
    with (
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices),
        torch.compiler.set_stance("force_eager"),
    ):
        torch.set_float32_matmul_precision("highest")
        model.eval()
        for module, mode in training.items():
            # transformers recomputes activations in training mode only; the flag of this one module
            # saves the memory and leaves the dropout of the modules in it off
            module.training = mode and getattr(module, "gradient_checkpointing", False)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)
            for module, mode in training.items():
                module.training = mode

"""The gradient on the probe batch, taken during the training without disturbing it.

The parameters are replaced by detached float32 aliases for the forward and backward passes, so
`.grad`, the hooks on parameters, frozen parameters and data-parallel buckets take no part in it;
forward hooks on modules do see it. Autocast is off, because bfloat16 rounding looks like a spectral
tail; the random state is forked; dropout is off and the modules' train or eval state is restored.

A causal language model's batch is split into micro-batches, whose gradients are added, weighted by
their tokens: less memory, on a CPU less time, and with several processes a share for each. Sharded
parameters (FSDP2) have no aliases: there the pass goes through `.grad`, which is cleared before and
restored afterwards, in the precision that the sharding computes in.
"""

import contextlib
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from spectra.composites import Composite
from spectra.matrices import is_sharded, unwrapped
from spectra.recording.micro_batches import MicroBatch, Probe, micro_batches
from spectra_data.errors import InputError, first_line

PIECE_TOKENS = {"cpu": 512, "cuda": 8192}
"""Tokens of one pass, by device: as fast as larger passes, in a fraction of the memory."""


def probe_gradients(
    model: torch.nn.Module,
    probe: Probe,
    parameters: Sequence[torch.nn.Parameter | Composite],
    *,
    rank: int = 0,
    processes: int = 1,
) -> list[torch.Tensor | None]:
    """Gradients of the mean probe loss with respect to `parameters`, in float32.

    Parameters
    ----------
    model
        Any module, wrapped or not.
    probe
        The fixed batch, the same in every process.
    parameters
        Parameters of `model`, or its composites.
    rank, processes
        Index of the share of the batch, and number of shares, over which the gradient is a sum.

    Returns
    -------
    A gradient for every parameter, in its shape; None if the loss does not depend on it. Sharded
    parameters have sharded gradients, which are already those of the whole batch.

    Raises
    ------
    InputError
        When the model returns no scalar loss for this probe.
    """
    model = unwrapped(model)
    held = [p for p in parameters if not isinstance(p, Composite)]
    composites = [p for p in parameters if isinstance(p, Composite)]
    if any(map(is_sharded, model.parameters())):
        if composites:
            raise InputError(
                "low-rank layers and adapters cannot be recorded where parameters are sharded"
            )
        return _sharded_gradients(model, probe, held, rank, processes)
    names = {id(p): name for name, p in model.named_parameters()}
    aliases = {name: _alias(p) for name, p in model.named_parameters()}
    wanted = [aliases[names[id(p)]].requires_grad_() for p in held]
    found: dict[int, torch.Tensor] = {}
    device = _device_of(model)
    # a leaf that every composite's gradient passes through
    leaves = {id(p): torch.zeros((), device=device, requires_grad=True) for p in composites}
    wanted += leaves.values()
    state: dict[str, torch.Tensor] = aliases | {n: _alias(b) for n, b in model.named_buffers()}
    state = {f"model.{name}": tensor for name, tensor in state.items()}
    tokens = PIECE_TOKENS.get(device.type, PIECE_TOKENS["cuda"])
    with _undisturbed(model), _watched(composites, leaves, found):
        for micro_batch in micro_batches(model, probe, tokens, rank=rank, processes=processes):
            torch.func.functional_call(_ProbePass(model, micro_batch, wanted), state, ())
    return [
        found.get(id(p)) if isinstance(p, Composite) else aliases[names[id(p)]].grad
        for p in parameters
    ]


def require_loss(model: torch.nn.Module, probe: Probe, *, rank: int, processes: int) -> None:
    """Require that a probe runs through a model and yields a loss: a share's first micro-batch.

    Nothing is tried with sharded parameters, since every process would have to take part.

    Raises
    ------
    InputError
        With what is wrong, and what to pass.
    """
    model = unwrapped(model)
    if any(map(is_sharded, model.parameters())):
        return
    _require_arguments(model, probe)
    device = _device_of(model)
    tokens = PIECE_TOKENS.get(device.type, PIECE_TOKENS["cuda"])
    state = {f"model.{name}": _alias(p) for name, p in model.named_parameters()}
    state |= {f"model.{name}": _alias(b) for name, b in model.named_buffers()}
    try:
        with _undisturbed(model), torch.no_grad():
            mine = micro_batches(model, probe, tokens, rank=rank, processes=processes)
            for micro_batch in mine[:1]:
                torch.func.functional_call(_ProbeLoss(model, micro_batch), state, ())
    except InputError:
        raise
    except Exception as error:  # from the model, which a user wrote
        raise InputError(
            f"the probe does not run through {type(model).__name__}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


def _require_arguments(model: torch.nn.Module, probe: Probe) -> None:
    """Require that a batch names only arguments of the model."""
    if isinstance(probe, torch.Tensor):
        named = ["input_ids", "labels"]
    elif isinstance(probe, Mapping):
        named = list(probe)
    else:
        return
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # for a forward that is not Python's
        return
    unknown = [name for name in named if name not in parameters]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise InputError(
            f"{type(model).__name__} takes {', '.join(parameters)}, not {', '.join(unknown)}: pass "
            f"its own arguments as the probe, {{{', '.join(f'{n!r}: …' for n in parameters)}}}, or "
            "a function of the model that returns the loss"
        )


@contextlib.contextmanager
def _watched(
    composites: Sequence[Composite],
    leaves: Mapping[int, torch.Tensor],
    found: dict[int, torch.Tensor],
) -> Iterator[None]:
    """Add up the gradients of composites: those of their outputs, times their inputs."""

    def watch(composite: Composite) -> Any:
        key = id(composite)

        def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            rows = inputs[0].detach().flatten(0, -2)  # (tokens, cols)

            def add(gradient: torch.Tensor) -> None:
                part = gradient.flatten(0, -2).mT @ rows
                found[key] = part + found[key] if key in found else part

            output = output + leaves[key]
            output.register_hook(add)  # type: ignore[no-untyped-call]
            return output

        return hook

    handles = [composite.module.register_forward_hook(watch(composite)) for composite in composites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _ProbeLoss(torch.nn.Module):
    """A forward pass with other parameters."""

    def __init__(self, model: torch.nn.Module, micro_batch: MicroBatch) -> None:
        super().__init__()
        self.model, self.micro_batch = model, micro_batch

    def forward(self) -> torch.Tensor:
        return self.micro_batch.loss(self.model)


class _ProbePass(torch.nn.Module):
    """Forward and backward in one call: recomputed activations must meet the same aliases."""

    def __init__(
        self, model: torch.nn.Module, micro_batch: MicroBatch, wanted: list[torch.Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self.micro_batch, self.wanted = micro_batch, wanted

    def forward(self) -> None:
        loss = self.micro_batch.loss(self.model) * self.micro_batch.weight
        if loss.requires_grad:
            # into the aliases' `.grad`, where micro-batches add up in place
            torch.autograd.backward(loss, inputs=self.wanted)


def _sharded_gradients(
    model: torch.nn.Module,
    probe: Probe,
    parameters: Sequence[torch.nn.Parameter],
    rank: int,
    processes: int,
) -> list[torch.Tensor | None]:
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters()):
        raise InputError(
            "a hook on a sharded parameter would act on the probe's gradient as on the training's: "
            "record with probe=None, or without hooks that step inside the backward pass"
        )
    saved = {p: p.grad for p in model.parameters()}
    (share,) = micro_batches(model, probe, rank=rank, processes=processes, everyone=True)
    try:
        for p in saved:
            p.grad = None
        with _undisturbed(model):
            # sharding averages what the processes compute
            (share.loss(model) * (share.weight * processes)).backward()  # type: ignore[no-untyped-call]
        return [p.grad for p in parameters]
    finally:
        for p, gradient in saved.items():
            p.grad = gradient


def probe_sha256(probe: Probe) -> str | None:
    """Hash of the probe batch; None for a function, whose data cannot be seen."""
    if isinstance(probe, torch.Tensor):
        probe = {"input_ids": probe}
    if isinstance(probe, Sequence):
        probe = {f"{position}": value for position, value in enumerate(probe)}
    if not isinstance(probe, Mapping):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(probe.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """The values as a leaf of their own: in shared memory, or in float32 for shorter floats."""
    detached = tensor.detach()
    short = detached.dtype in (torch.bfloat16, torch.float16)
    return detached.float() if short else detached


@contextlib.contextmanager
def _undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Turn gradients on, autocast, compilation and dropout off; restore everything afterwards."""
    device = _device_of(model)
    devices = [device] if device.type == "cuda" else []
    training = {module: module.training for module in model.modules()}
    with (
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices),
        torch.compiler.set_stance("force_eager"),
        _full_precision(),
    ):
        model.eval()
        for module, mode in training.items():
            # transformers recomputes activations in training mode only; the flag of this one module
            # saves the memory and leaves the dropout of the modules in it off
            module.training = mode and _recomputes(module)
        try:
            yield
        finally:
            for module, mode in training.items():
                module.training = mode


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Turn off shortcuts in float32 products, whichever of torch's two APIs set them."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer API, which the older one cannot read
        on_cpu: Any = torch.backends.mkldnn
        backends: list[Any] = [torch.backends.cuda.matmul, on_cpu.matmul]
        chosen = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            for backend, precision in zip(backends, chosen, strict=True):
                backend.fp32_precision = precision
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _recomputes(module: torch.nn.Module) -> bool:
    """Whether a module recomputes activations in a way that works with the probe's pass."""
    if not getattr(module, "gradient_checkpointing", False):
        return False
    keywords = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
    return keywords.get("use_reentrant") is False


def probe_precision(model: torch.nn.Module) -> str:
    """Precision of probe gradients: float32, unless the sharding policy sets another."""
    for module in model.modules():
        state = getattr(module, "_get_fsdp_state", None)
        policy = getattr(state() if state else None, "_mp_policy", None)
        dtype = getattr(policy, "param_dtype", None)
        if dtype is not None:
            return str(dtype).removeprefix("torch.")
    return "float32"

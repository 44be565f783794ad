"""Reading a quantity from a training step: before the optimizer's step, after it, or around it.

A reader returns, for every matrix that this process decomposes, the matrix or why it is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from spectra.composites import Composite
from spectra.matrices import Weight
from spectra.recording.clipping import Clipping
from spectra.recording.measure import Captured
from spectra.recording.processes import whole_matrices
from spectra.recording.timings import Timings
from spectra.store.schema import Status

Tensors = Mapping[int, torch.Tensor | None]
"""Tensors by the identity of the parameter that they are shaped like."""


@dataclass(frozen=True)
class Step:
    """An optimizer step, as readers see it."""

    weights: Sequence[Weight]
    """Weights of all matrices."""
    own: Sequence[int]
    """Numbers of the matrices that this process decomposes."""
    parameters: Sequence[torch.nn.Parameter | Composite]
    """Parameters that hold the weights, each once."""
    optimizer: torch.optim.Optimizer
    optimized: frozenset[int]
    """Identities of the parameters that the optimizer updates."""
    timings: Timings
    first: bool = False
    """Whether this is the state that training starts from, and not a step."""
    closure: bool = False
    """Whether the optimizer computes gradients itself, inside its step."""
    clipping: Clipping | None = None
    """Clipping of the gradients."""

    def matrices(self, tensors: Tensors, part: str) -> list[torch.Tensor | None]:
        """The whole matrices of `own` in tensors shaped like the parameters."""
        with self.timings.measure("gathering", part):
            return whole_matrices(self.weights, self.own, tensors)

    def all(self, status: Status) -> list[Captured]:
        """The same status for every matrix of `own`."""
        return [status] * len(self.own)


@dataclass(frozen=True)
class Reader:
    """How a quantity is taken."""

    when: Literal["before", "after"]
    """Whether it is taken before the optimizer's step, or after it."""
    take: Callable[[Step, Any], Sequence[Captured]]
    """Function that takes it, given the result of `keep`; also called before the first recorded
    step, with ``first`` set."""
    keep: Callable[[Step], Any] | None = None
    """Function called before the step, whose result is kept until `take` after it."""


def _weight(step: Step, kept: Any) -> Sequence[Captured]:
    values = {id(p): p.detach() for p in step.parameters}
    return [m for m in step.matrices(values, "weight") if m is not None]


def _training_gradient(step: Step, kept: Any) -> Sequence[Captured]:
    if step.first:  # the step that led to this state was not recorded
        return step.all(Status.FIRST_STATE)
    if step.closure:  # the gradients of this step are yet to come, inside of it
        return step.all(Status.IN_CLOSURE)
    # only the parts of a composite have one
    gradients = {id(p): None if isinstance(p, Composite) else p.grad for p in step.parameters}
    matrices = step.matrices(gradients, "training_gradient")
    scale = getattr(step.optimizer, "grad_scale", None)  # GradScaler leaves it to a fused one
    unscale = 1.0 if scale is None else 1.0 / float(scale)
    captured: list[Captured] = []
    for matrix, number in zip(matrices, step.own, strict=True):
        parameter = step.weights[number].parameter
        if matrix is None:
            frozen = not parameter.requires_grad
            captured.append(Status.FROZEN if frozen else Status.NO_GRADIENT)
            continue
        if id(parameter) not in step.optimized or isinstance(parameter, Composite):
            captured.append(Status.NOT_OPTIMIZED)
            continue
        assert step.clipping is not None
        factor = step.clipping.factor_of(parameter)
        undo = unscale / factor if factor > 0 else unscale
        captured.append(matrix.detach() if undo == 1.0 else matrix.detach() * undo)
    return captured


def _copies(step: Step) -> dict[int, torch.Tensor] | None:
    """Copies of the weights before the step; None if it changes none."""
    sources = (source for weight in step.weights for source in weight.sources)
    # not if the backward pass has updated them already
    if not step.closure and not any(p.grad is not None for p in sources):
        return None
    with step.timings.measure("copy", "update"):
        return {
            id(p): p.detach() if isinstance(p, Composite) else p.detach().clone()
            for p in step.parameters
        }


def _update(step: Step, before: dict[int, torch.Tensor] | None) -> Sequence[Captured]:
    if before is None:
        return step.all(Status.FIRST_STATE if step.first else Status.NO_GRADIENT)
    for parameter in step.parameters:  # no more than one copy at a time
        before[id(parameter)].neg_().add_(parameter.detach())
    return [
        Status.NOT_OPTIMIZED if matrix is None or not _is_updated(step, number) else matrix
        for matrix, number in zip(step.matrices(before, "update"), step.own, strict=True)
    ]


def _is_updated(step: Step, number: int) -> bool:
    """Whether the recorded optimizer updates a matrix, or nothing does."""
    sources = step.weights[number].sources
    optimized = any(id(source) in step.optimized for source in sources)
    return optimized or not any(source.requires_grad for source in sources)


WEIGHT = Reader("after", _weight)
TRAINING_GRADIENT = Reader("before", _training_gradient)
UPDATE = Reader("after", _update, keep=_copies)

"""The training loop.

One optimizer step is: read the batch of (seed, step), accumulate gradients over micro-batches, stop
if anything is not finite, clip, update. Evaluation and checkpoints come after the step that
they belong to. The recorder hangs on the optimizer's hooks; the loop only logs the numbers that
hooks cannot see.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from spectra.recording.recorder import NullRecorder, Recorder
from spectra_pretrain.batches import Batch, Batches, Validation, labels_of, moved, split, tokens_of
from spectra_pretrain.checkpoint import Checkpoints
from spectra_pretrain.display import Display, Status
from spectra_pretrain.evaluation import validation_loss
from spectra_pretrain.finiteness import NonFiniteError, first_non_finite
from spectra_pretrain.options import RunOptions
from spectra_pretrain.parametrizations.dense import DenseLayers
from spectra_pretrain.parametrizations.registry import Parametrized
from spectra_pretrain.schedule import scheduled
from spectra_pretrain.signals import StopRequest

Objective = Callable[[Callable[..., Any], Batch], torch.Tensor]
"""Loss of a model's forward function on a batch: a mean over the labels that count."""


def own_loss(forward: Callable[..., Any], batch: Batch) -> torch.Tensor:
    """The model's own loss: cross-entropy of the next token, and any terms that it adds."""
    loss: torch.Tensor = forward(**batch, use_cache=False).loss
    return loss


@dataclass(frozen=True)
class Evaluated:
    """State of a run at an evaluation."""

    step: int
    tokens: int
    train_loss: float | None
    """Mean over the steps since the previous evaluation; None before the first step."""
    validation_loss: float


@dataclass(frozen=True)
class Outcome:
    """State of a run at the end of its loop."""

    step: int
    train_loss: float
    """Loss of the last step; NaN before the first."""
    validation_loss: float
    """Loss after the last step; NaN if it was not evaluated."""
    tokens_per_second: float
    """Speed of this process, all its work included."""
    step_tokens_per_second: float
    """Speed without evaluations and checkpoints."""


class Training:
    """A model, its optimizer and its data, between two optimizer steps."""

    def __init__(
        self,
        options: RunOptions,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        train: Batches,
        validation: Validation,
        *,
        objective: Objective = own_loss,
        layers: Parametrized | None = None,
        from_checkpoint: bool = False,
    ) -> None:
        self.options = options
        self.model = model
        self.optimizer = optimizer
        self.step = 0
        """Optimizer steps done."""
        self.tokens = 0
        """Tokens trained on."""
        self.loss = math.nan
        """Training loss of the last step."""
        self.seconds = 0.0
        """Seconds that steps of this process took, recording included."""
        self.evaluations: list[Evaluated] = []
        self._losses: list[float] = []
        self._train, self._validation = train, validation
        self.from_checkpoint = from_checkpoint
        """Whether the initial weights are trained, and so worth an evaluation."""
        self._objective = objective
        self._layers = layers or DenseLayers(model)
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self._schedule = scheduled(optimizer, options, self.step)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._device = next(model.parameters()).device
        # compiled as a wrapper, so that the model's names and parameters do not change
        self._forward: Callable[..., Any] = (
            torch.compile(model) if options.machine.compile else model
        )

    def train_step(self, recorder: Recorder | NullRecorder) -> float:
        """Make one optimizer step; return the training loss before it.

        Raises
        ------
        NonFiniteError
            When the loss or a gradient is not finite; weights and optimizer are as before the step.
        """
        started = time.perf_counter()
        options = self.options
        batch = self._train.read(self.step)
        tokens = self.tokens + tokens_of(batch)
        loss = self._accumulate(batch)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        total_norm = torch.nn.utils.get_total_norm(gradients)
        norm = total_norm.item()
        # checked before clipping, which would spread a NaN to every gradient
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._stop_non_finite(batch, loss)
        clip = options.optimizer.clip or math.inf
        torch.nn.utils.clip_grads_with_norm_(self._parameters, clip, total_norm)
        recorder.log(
            loss=loss,
            gradient_norm=norm,
            clip_factor=min(1.0, clip / (norm + 1e-6)),
            tokens=tokens,
        )
        self.optimizer.step()
        self._layers.after_step(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        self._schedule.step()
        self.step += 1
        self.tokens, self.loss = tokens, loss
        self._losses.append(loss)
        self.seconds += time.perf_counter() - started
        return loss

    def evaluate(self) -> float:
        """Loss on the validation part, in nats."""
        # adapters may add terms of their own to the loss of the model around this one
        inner = getattr(self.model, "get_base_model", lambda: self.model)()
        found = validation_loss(inner, self._validation, autocast=self.autocast())
        losses, self._losses = self._losses, []
        mean = sum(losses) / len(losses) if losses else None
        self.evaluations.append(Evaluated(self.step, self.tokens, mean, found))
        return found

    def state(self) -> dict[str, Any]:
        """All that the next step depends on except model and random state, and the history."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "train_loss": self.loss,
            "losses": list(self._losses),
            "evaluations": [asdict(e) for e in self.evaluations],
            "optimizer": self.optimizer.state_dict(),
            "method": self._layers.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.step, self.tokens = int(state["step"]), int(state["tokens"])
        self.loss = float(state["train_loss"])
        self._losses = list(state["losses"])
        self.evaluations = [Evaluated(**e) for e in state["evaluations"]]
        self.optimizer.load_state_dict(state["optimizer"])
        self._layers.load_state(state["method"])
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["initial_lr"] = peak  # rates are a function of options and step
        self._schedule = scheduled(self.optimizer, self.options, self.step)

    def _accumulate(self, batch: Batch) -> float:
        """Gradients of the mean loss over all labels of the batch."""
        micro_batches = split(batch, self.options.micro_batch_size)
        labels = labels_of(batch)
        total = torch.zeros((), device=self._device)
        for micro_batch in micro_batches:
            with self.autocast():
                loss = self._objective(self._forward, moved(micro_batch, self._device))
            loss = loss * (labels_of(micro_batch) / labels)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total.item()

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the model computes in."""
        enabled = self.options.reduced
        return torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)

    def _stop_non_finite(self, batch: Batch, loss: float) -> None:
        micro_batches = split(moved(batch, self._device), self.options.micro_batch_size)
        with self.autocast():
            cause = first_non_finite(self.model, micro_batches, math.isfinite(loss))
        raise NonFiniteError(f"step {self.step + 1}: the loss is {loss:.4g}; {cause}")


def run_loop(
    training: Training,
    recorder: Recorder | NullRecorder,
    checkpoints: Checkpoints,
    write_model: Callable[[Path], None],
    display: Display,
    stop: StopRequest,
) -> Outcome:
    """Train to the last step, or to the end of the step in which a signal requests a stop."""
    options = training.options
    if training.step == 0 and training.from_checkpoint:
        display.say("evaluating before the first step")
        display.say(f"before the first step: {_words(training.evaluate())}")
    started, first, seen = time.perf_counter(), training.step, training.tokens
    evaluated = math.nan
    saved = first

    def save() -> int:
        recorder.flush()
        checkpoints.save(training.step, write_model, training.state())
        return training.step

    while training.step < options.steps and stop.signal is None:
        training.train_step(recorder)
        done = training.step
        last = done == options.steps
        if last or done % options.evaluation.eval_every == 0:
            evaluated = training.evaluate()
            recorder.log_validation(evaluated)
            display.say(f"step {done}: {_words(evaluated)}")
        if last or done % options.checkpoints.checkpoint_every == 0:
            saved = save()
        elapsed = time.perf_counter() - started
        speed = (training.tokens - seen) / elapsed
        display.update(Status(done, training.loss, speed, recorder.share, elapsed))
    if training.step == options.steps and math.isnan(evaluated):
        # resumed after the last step, before its figures were saved
        evaluated = training.evaluations[-1].validation_loss
    if saved != training.step:  # stopped between two checkpoints
        save()
    elapsed = time.perf_counter() - started
    tokens = training.tokens - seen
    return Outcome(
        training.step,
        training.loss,
        evaluated,
        tokens / elapsed if tokens else math.nan,
        tokens / training.seconds if tokens else math.nan,
    )


def _words(loss: float) -> str:
    return f"validation loss {loss:.4f}, perplexity {math.exp(min(loss, 700)):.2f}"

"""The training loop.

One optimizer step is: read the windows of (seed, step), accumulate gradients over micro-batches,
stop if anything is not finite, clip, update. Evaluation and checkpoints come after the step that
they belong to. The recorder hangs on the optimizer and needs nothing but the numbers that hooks
cannot see.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from data.windows import Windows, training_batch
from pretrain.checkpoint import Checkpoints
from pretrain.display import Display, Status
from pretrain.evaluation import validation_loss
from pretrain.finiteness import NonFiniteError, first_non_finite
from pretrain.options import PretrainOptions
from pretrain.schedule import learning_rate
from pretrain.signals import StopRequest
from spectra.recording.recorder import NullRecorder, Recorder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Outcome:
    """How far a run came."""

    step: int
    train_loss: float
    """Of the last step; NaN before the first."""
    validation_loss: float
    """After the last step; NaN where it was not evaluated."""
    tokens_per_second: float
    """Of this process, all its work included."""


class Training:
    """A model, its optimizer and its data, between two optimizer steps."""

    def __init__(
        self,
        options: PretrainOptions,
        model: "PreTrainedModel",
        optimizer: torch.optim.Optimizer,
        train: Windows,
        validation: Windows,
        step: int = 0,
    ) -> None:
        self.options = options
        self.model = model
        self.optimizer = optimizer
        self.step = step
        """Optimizer steps done."""
        self.loss = math.nan
        """Training loss of the last of them."""
        self._train, self._validation = train, validation
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._device = next(model.parameters()).device
        # compiled beside the model, whose names and parameters stay as they are
        self._forward: Callable[..., Any] = (
            torch.compile(model) if options.machine.compile else model
        )

    def train_step(self, recorder: Recorder | NullRecorder) -> float:
        """Make one optimizer step; returns the training loss before it.

        Raises
        ------
        NonFiniteError
            When the loss or a gradient is not finite; weights and optimizer are as before the step.
        """
        options = self.options
        batch = torch.from_numpy(
            training_batch(
                self._train, seed=options.seed, step=self.step, size=options.batch.batch_size
            )
        ).to(self._device)  # (batch_size, seq_len)
        loss = self._accumulate(batch)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        total_norm = torch.nn.utils.get_total_norm(gradients)
        norm = total_norm.item()
        # looked at before clipping, which would spread a NaN to every gradient
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._stop_non_finite(batch, loss)
        clip = options.optimizer.clip or math.inf
        torch.nn.utils.clip_grads_with_norm_(self._parameters, clip, total_norm)
        rate = learning_rate(self.step, options.steps, options.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        recorder.log(
            loss=loss,
            gradient_norm=norm,
            clip_factor=min(1.0, clip / (norm + 1e-6)),
            tokens=(self.step + 1) * options.tokens_per_step,
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.loss = loss
        return loss

    def evaluate(self) -> float:
        """Loss on the validation part, in nats."""
        return validation_loss(
            self.model,
            self._validation,
            tokens=self.options.evaluation.eval_tokens,
            batch_size=self.options.micro_batch_size,
            autocast=self._autocast(),
        )

    def _accumulate(self, batch: torch.Tensor) -> float:
        """Gradients of the mean loss over all windows; micro-batches are equally long."""
        micro_batches = torch.split(batch, self.options.micro_batch_size)
        total = torch.zeros((), device=self._device)
        for micro_batch in micro_batches:
            with self._autocast():
                loss = self._forward(
                    input_ids=micro_batch, labels=micro_batch, use_cache=False
                ).loss
            loss = loss / len(micro_batches)
            loss.backward()
            total += loss.detach()
        return total.item()

    def _autocast(self) -> AbstractContextManager[Any]:
        reduced = self.options.precision == "bfloat16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=reduced)

    def _stop_non_finite(self, batch: torch.Tensor, loss: float) -> None:
        micro_batches = torch.split(batch, self.options.micro_batch_size)
        with self._autocast():
            place = first_non_finite(self.model, micro_batches, math.isfinite(loss))
        raise NonFiniteError(f"step {self.step + 1}: the loss is {loss:.4g}; {place}")


def run_loop(
    training: Training,
    recorder: Recorder | NullRecorder,
    checkpoints: Checkpoints,
    tokenizer: "PreTrainedTokenizerFast",
    display: Display,
    stop: StopRequest,
) -> Outcome:
    """Train to the last step, or to the end of the step in which a stop was asked for."""
    options = training.options
    started, first = time.perf_counter(), training.step
    evaluated = math.nan
    saved = first

    def save() -> int:
        recorder.flush()
        checkpoints.save(
            training.step, training.model, training.optimizer, tokenizer, training.loss
        )
        return training.step

    while training.step < options.steps and stop.signal is None:
        training.train_step(recorder)
        done = training.step
        last = done == options.steps
        if last or done % options.evaluation.eval_every == 0:
            evaluated = training.evaluate()
            recorder.log_validation(evaluated)
            display.say(
                f"step {done}: validation loss {evaluated:.4f}, "
                f"perplexity {math.exp(min(evaluated, 700)):.2f}"
            )
        if last or done % options.checkpoints.checkpoint_every == 0:
            saved = save()
        speed = (done - first) * options.tokens_per_step / (time.perf_counter() - started)
        display.update(Status(done, training.loss, speed, recorder.share))
    if training.step == options.steps and math.isnan(evaluated):
        evaluated = (
            training.evaluate()
        )  # resumed after the last step, before its figures were saved
    if saved != training.step:  # a stop was asked for between two checkpoints
        save()
    elapsed = time.perf_counter() - started
    tokens = (training.step - first) * options.tokens_per_step
    return Outcome(
        training.step, training.loss, evaluated, tokens / elapsed if tokens else math.nan
    )

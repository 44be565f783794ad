"""The recorder: attaches to an optimizer's step hooks and takes a snapshot when one is due.

A snapshot of step t is the state after t updates: the weights, their gradient on the probe batch,
and the update that led to them. It is taken inside the t-th `optimizer.step()`, after the update;
the snapshot of the state that training starts from is taken inside the first. The step's own
gradients are read once, before the optimizer uses or clears them: after accumulation, unscaling and
the reduction over processes, with clipping undone.
"""

import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch

from spectra.matrices import Weight
from spectra.quantities import EXTRAS, GRADIENT, QUANTITIES, worth
from spectra.recording.clipping import ClippingWatch
from spectra.recording.inline import Executor
from spectra.recording.micro_batches import Probe
from spectra.recording.overhead import Overhead
from spectra.recording.probe import probe_gradients
from spectra.recording.processes import Processes, whole_matrices
from spectra.recording.readers import Step
from spectra.recording.rows import TrainRows
from spectra.recording.timings import Timings
from spectra.store.layout import Contents, Layout
from spectra.store.schedule import Schedule
from spectra.store.schema import Status
from spectra_data.errors import InputError

ROWS_AT_ONCE = 50


class Recorder:
    """Takes snapshots; made by `record`."""

    def __init__(
        self,
        model: torch.nn.Module,
        layout: Layout,
        weights: Sequence[Weight],
        executor: Executor,
        *,
        schedule: Schedule,
        probe: Probe | None,
        overhead: Overhead,
        processes: Processes,
        timings: Timings,
        step: int,
        recorded: Sequence[int],
        strict: bool,
    ) -> None:
        self.step = step
        """Optimizer steps done."""
        self.timings = timings
        """Seconds of the training loop by what the recorder spent them on."""
        self.stopped: str | None = None
        """Reason why the recorder gave up; None if it did not."""
        self.snapshots = len(recorded)
        """Number of snapshots taken, those of an earlier process included."""
        self.dropped: list[int] = []
        """Steps whose snapshots were dropped because the background process was behind."""
        self.layout = layout
        """The matrices, and the arrays recorded of them with their sizes."""
        self.overhead = overhead
        """Choice of what is left out to stay within the overhead allowed."""
        self._model, self._weights, self._executor = model, list(weights), executor
        self._parameters = list({id(w.parameter): w.parameter for w in weights}.values())
        self._schedule, self._probe = schedule, probe
        self._processes, self._strict = processes, strict
        self._begun_at = step
        self._own = processes.own(layout.matrices)
        self._considered = recorded[-1] if recorded else -1
        self._pending: Contents | None = None
        self._readers = {
            name: reader
            for name in layout.contents.kinds
            if (reader := QUANTITIES[name].read()) is not None
        }
        self._kept: dict[str, Any] = {}
        """Values that readers keep until the step is done."""
        self._rows = TrainRows()
        self._clipping = ClippingWatch(model.parameters())
        self._failure: BaseException | None = None
        self._started = time.perf_counter()
        self._handles: list[Any] = []

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Attach to an optimizer's step hooks."""
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        groups = optimizer.param_groups
        self._optimized = frozenset(id(p) for group in groups for p in group["params"])
        if self.stopped is None:
            self._clipping.open()
        _unclosed.add(self)

    def log(self, **metrics: float | torch.Tensor) -> None:
        """Store metrics that the hooks cannot see, with the next step.

        Metrics are those of the schema: loss, gradient_norm (before clipping), clip_factor, tokens
        (seen so far, the step's own included). Tensors are read later, when rows are written, so
        that nothing waits for a GPU.

        Raises
        ------
        InputError
            When a metric has another name, or is not a number.
        """
        self._rows.log(metrics)

    def log_last(self, **metrics: float | torch.Tensor) -> None:
        """Store metrics that are known only afterwards, e.g. the loss, with the last step done.

        Raises
        ------
        InputError
            See `log`.
        """
        self._rows.log_last(metrics)

    def log_validation(self, loss: float) -> None:
        """Store the loss on the validation part with the last step done."""
        self._rows.log_last({"validation_loss": loss})

    @property
    def share(self) -> float:
        """The recorder's share of the training loop's time since it was made, from 0 to 1."""
        elapsed = time.perf_counter() - self._started
        return self.timings.seconds / elapsed if elapsed > 0 else 0.0

    @property
    def left_out(self) -> list[str]:
        """Lines about what was due and is not in the store, one for every reason."""
        lines = []
        if self.dropped:
            steps = ", ".join(map(str, self.dropped))
            lines.append(f"dropped {len(self.dropped)} snapshots, the queue was full: {steps}")
        if spared := self.overhead.describe():
            lines.append(spared)
        return lines

    def flush(self) -> None:
        """Return when all is written so far; call it before a checkpoint, so that the two agree."""
        self._guard(self._write_rows)
        self._guard(self._executor.flush)

    def close(self) -> None:
        """Write what is left and release the optimizer and the store."""
        if not self._handles:
            return
        try:
            self.flush()
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles = []
            self._clipping.close()
            _unclosed.discard(self)
            self._kept = {}
            self._guard(self._executor.close, even_if_stopped=True)
            self._processes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self.stopped:
            return
        closure = any(map(callable, (*args, *kwargs.values())))
        self._rows.finish()
        clipping = self._clipping.take()
        self._rows.log_clipping(clipping)
        if self._schedule.due(self.step) and self.step > self._considered:
            # the state that training starts from
            self._begin(self.step, first=True)
            first = self._step_of(optimizer, first=True)
            self._together(lambda: self._take("before", first))
            self._end(first)
        if not self.stopped and self._schedule.due(self.step + 1):
            self._begin(self.step + 1)
            step = self._step_of(optimizer, closure=closure, clipping=clipping)
            self._together(lambda: self._take("before", step))
            self._together(lambda: self._keep(step))
        self._executor.before_update()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if _skipped(optimizer):
            self._pending, self._kept = None, {}
            return
        self.step += 1
        if self.stopped:
            return
        self._rows.begin(self.step, float(optimizer.param_groups[0]["lr"]))
        if self._pending is not None:
            self._end(self._step_of(optimizer))
        elif len(self._rows) >= ROWS_AT_ONCE:
            self._guard(self._write_complete_rows)

    def _begin(self, step: int, *, first: bool = False) -> None:
        """Choose the contents of a step's snapshot, and make room for it."""
        self._pending, self._considered = None, step

        def begin() -> None:
            always = first or self.snapshots == 0 or step == self._schedule.last
            elapsed = time.perf_counter() - self._started
            contents = self.overhead.choose(elapsed, self.timings.seconds, always=always)
            contents = self._processes.same(contents)
            self.timings.parts.clear()
            if contents is None:
                return
            if self._executor.begin(step, contents):
                self._pending = contents
            else:
                self.dropped.append(step)

        self._together(begin)

    def _step_of(self, optimizer: torch.optim.Optimizer, **about: Any) -> Step:
        """The optimizer's step, as readers see it."""
        return Step(
            self._weights,
            self._own,
            self._parameters,
            optimizer,
            self._optimized,
            self.timings,
            **about,
        )

    @torch.no_grad()
    def _take(self, when: str, step: Step) -> None:
        """Take the quantities that are due before, or after, the optimizer's step."""
        wanted = [name for name in self._wanted() if self._readers[name].when == when]
        # first those that free the memory that they kept
        for name in sorted(wanted, key=lambda name: self._readers[name].keep is None):
            kept = self._kept.pop(name, None)
            self._executor.take(name, self._readers[name].take(step, kept))

    def _keep(self, step: Step) -> None:
        """Keep values from before the step that readers need after it."""
        for name in self._wanted():
            if (keep := self._readers[name].keep) is not None:
                self._kept[name] = keep(step)

    def _wanted(self) -> list[str]:
        """Quantities of the snapshot that is due, without the probe gradient."""
        kinds = () if self._pending is None else self._pending.kinds
        return [name for name in kinds if name in self._readers]

    def _end(self, step: Step) -> None:
        """Take the quantities that are due now, and hand the snapshot over."""
        contents = self._pending
        if contents is None:
            return
        gradients: list[torch.Tensor | None] = []

        def probe() -> None:
            if contents.uses_probe and self._probe is not None:
                with self.timings.measure("probe gradient", _probe_part(contents)):
                    gradients[:] = probe_gradients(
                        self._model,
                        self._probe,
                        self._parameters,
                        rank=self._processes.rank,
                        processes=self._processes.count,
                    )

        def take_probe() -> None:
            if not gradients:
                return
            with self.timings.measure("gathering", _probe_part(contents)):
                sums = self._processes.sum_(gradients)
                gradients.clear()
                tensors = dict(zip(map(id, self._parameters), sums, strict=True))
                matrices = whole_matrices(self._weights, self._own, tensors)
            absent = Status.INDEPENDENT
            self._executor.take(GRADIENT, [absent if m is None else m for m in matrices])

        self._together(lambda: self._take("after", step))
        self._together(probe)
        self._together(take_probe)
        self._together(self._finish)
        self._pending, self._kept = None, {}

    def _finish(self) -> None:
        self._executor.finish()
        self.snapshots += 1
        self.overhead.learn(self.timings.parts)
        self._write_complete_rows()

    def _write_rows(self) -> None:
        self._rows.finish()
        self._write_complete_rows()

    def _write_complete_rows(self) -> None:
        """Write all rows but the newest, whose validation loss may still come."""
        self._executor.write_rows(self._rows.take())

    def _together(self, work: Callable[[], None]) -> None:
        """Do what all processes do at this point; an error in one stops the recorder in all."""
        if self.stopped:
            return
        if self._failure is None:
            self._try(work)
        try:
            reason = self._processes.agree(_reason(self._failure))
        except RuntimeError as error:  # another process is gone, or did not come in time
            reason = f"the processes lost each other: {error}"
        if reason is not None:
            self._stop(reason)

    def _guard(self, work: Callable[[], None], *, even_if_stopped: bool = False) -> None:
        """Do what this process does alone; the others learn of a failure when they next meet."""
        if self._failure is not None or (self.stopped and not even_if_stopped):
            return
        self._try(work)
        reason = _reason(self._failure)
        if reason is not None and self._processes.count == 1:
            self._stop(reason)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # a full disk, no memory left, a decomposition that failed
            self._failure = error

    def _stop(self, reason: str) -> None:
        """Stop recording; end the training only if strict, or if the recorder is misused."""
        already = self.stopped is not None
        self._clipping.close()
        self._pending, self._kept = None, {}
        self.stopped = self.stopped or f"recording stopped at step {self.step}: {reason}"
        failure, self._failure = self._failure, None
        if already:
            return
        misused = isinstance(failure, InputError) and not self.snapshots
        if self._strict or misused:
            raise failure if failure is not None else RuntimeError(self.stopped)
        warnings.warn(f"{self.stopped}; training continues", RuntimeWarning, stacklevel=2)


def _reason(error: BaseException | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"


def _probe_part(contents: Contents) -> str:
    """The most valuable part of a snapshot that needs the probe gradient."""
    parts = sorted((GRADIENT, *EXTRAS), key=worth)
    return next(part for part in parts if part in contents.parts)


def _skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimizer made no step, because GradScaler found an infinity."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(float(found))


_unclosed: set[Recorder] = set()


# a forked child (of a DataLoader, say) has no recorder to close
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unclosed.clear)


def _close_all() -> None:
    for recorder in list(_unclosed):
        recorder.close()


# A script need not close its recorder. zarr writes through threads, which Python ends before it
# calls atexit's functions; functions registered here are called earlier.
getattr(threading, "_register_atexit", lambda function: None)(_close_all)


class NullRecorder:
    """Records nothing, for a loop that runs without a recorder."""

    share = 0.0
    stopped: str | None = None
    left_out: Sequence[str] = ()

    def __init__(self) -> None:
        self.timings = Timings()

    def log(self, **metrics: float | torch.Tensor) -> None:
        """Do nothing."""

    def log_validation(self, loss: float) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

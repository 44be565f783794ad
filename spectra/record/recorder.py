"""The recorder: hangs on an optimizer's step hooks and writes a snapshot when one is due.

A snapshot of step t is the state after t updates: the weights, their gradient on the probe batch,
and the update that led to them. It is taken inside of the t-th `optimizer.step()`, after the
update; the snapshot of the state that training starts from is taken inside of the first. The loop
needs no other call; what hooks cannot see (the loss, the norm before clipping) is stored when the
loop hands it to `log`.
"""

import json
import platform
import threading
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import torch

from data.errors import InputError
from spectra.matrices import Matrix, Skipped, find_matrices, unwrapped
from spectra.record.probe import Probe, probe_sha256
from spectra.record.schedule import Schedule
from spectra.record.sketch import CountSketch
from spectra.record.snapshot import Timings, measure_snapshot
from spectra.store.schema import SPECTRA, TRAIN, Layout
from spectra.store.writer import StoreWriter

ROWS_AT_ONCE = 50
SOFTWARE = ("spectra-dynamics", "torch", "transformers", "numpy", "zarr")


def record(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    store: str | Path,
    *,
    probe: Probe | None,
    every: int = 500,
    steps: int | None = None,
    sketch: int = 4096,
    seed: int = 0,
    start_step: int = 0,
    resume: bool = False,
    strict: bool = False,
    attrs: Mapping[str, Any] | None = None,
) -> "Recorder":
    """Record the spectra of a training run into a store.

    Parameters
    ----------
    model
        The model that is trained. Its matrices are the linear layers inside of transformer blocks.
    optimizer
        Its optimizer; the recorder hangs on its step hooks.
    store
        Path of the store to make.
    probe
        The fixed batch on which gradients are taken: token ids (windows, length), a batch of
        keyword arguments with labels, or a function of the model that returns the mean loss. None
        records weights and updates only.
    every
        Steps between snapshots. The state before the first step is one, and the state after the
        last where `steps` says which that is.
    steps
        How many optimizer steps there will be, if known: the store is then laid out at full size.
    sketch
        Components of a gradient's sketch, from which cosine similarities are estimated to within
        about 1 / sqrt(sketch); 0 records none.
    seed
        Of the sketch. Runs with the same seed can be compared with each other.
    start_step
        Optimizer steps done before this process, when a run is resumed.
    resume
        Go on with the store if there is one; its rows after `start_step` are unset first.
    strict
        Let an error in recording (a full disk, say) stop the training. By default it stops the
        recorder, with a warning.
    attrs
        Further attributes of the store; ``model`` (a name) and ``config`` are shown in reports.

    Raises
    ------
    InputError
        When the store exists and `resume` is not set, or was recorded from another model or probe
        batch; when the model has no matrices, or the optimizer is another model's.

    Examples
    --------
    >>> recorder = spectra.record(
    ...     model, optimizer, "runs/a.zarr", probe=batch, every=500
    ... )  # doctest: +SKIP
    >>> for batch in batches:  # doctest: +SKIP
    ...     model(**batch).loss.backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    """
    matrices, skipped = find_matrices(model)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if trained.isdisjoint(map(id, model.parameters())):
        raise InputError("the optimizer updates no parameter of this model: pass the model's own")
    if not (probe is None or isinstance(probe, torch.Tensor | Mapping) or callable(probe)):
        raise InputError(
            "a probe is token ids, a batch or a function of the model, "
            f"not a {type(probe).__name__}"
        )
    if sketch < 0:
        raise InputError(f"a sketch has at least 0 components, not {sketch}")
    schedule = Schedule(every, steps)
    layout = layout_of(list(matrices), schedule, probe, sketch)
    all_attrs = describe(model, probe, skipped, attrs or {}) | {
        "sketch": {"components": layout.sketch, "seed": seed},
        "record_every": every,
    }
    path = Path(store)
    if resume and path.exists():
        writer = StoreWriter.resume(path, layout, all_attrs, start_step)
    else:
        writer = StoreWriter.create(path, layout, all_attrs)
    recorder = Recorder(
        model,
        list(matrices.values()),
        writer,
        schedule,
        probe,
        CountSketch(layout.sketch, seed) if layout.sketch else None,
        start_step,
        strict,
    )
    recorder.attach(optimizer)
    return recorder


def layout_of(
    matrices: list[Matrix], schedule: Schedule, probe: Probe | None, sketch: int
) -> Layout:
    """The store that a recording needs."""
    return Layout(
        tuple(matrices),
        snapshots=schedule.snapshots,
        train_steps=schedule.steps,
        spectra=tuple(name for name in SPECTRA if probe is not None or name != "gradient"),
        sketch=sketch if probe is not None else 0,
    )


class Recorder:
    """Takes snapshots; made by `record`."""

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: list[torch.nn.Parameter],
        writer: StoreWriter,
        schedule: Schedule,
        probe: Probe | None,
        sketch: CountSketch | None,
        step: int,
        strict: bool,
    ) -> None:
        self.step = step
        """Optimizer steps done."""
        self.timings = Timings()
        """Seconds by what the recorder spent them on."""
        self.stopped: str | None = None
        """Why the recorder gave up, if it did."""
        self._model, self._parameters = model, parameters
        self._writer, self._schedule = writer, schedule
        self._probe, self._sketch, self._strict = probe, sketch, strict
        self._last_snapshot = next(iter(writer.steps[-1:]), None)
        self._before: list[torch.Tensor] | None = None
        self._metrics: dict[str, float] = {}
        self._last_row: dict[str, float] | None = None
        self._rows: list[dict[str, float]] = []
        self._started = self._row_time = time.perf_counter()
        self._row_tokens: float | None = None
        self._handles: list[Any] = []

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Hang on an optimizer's step hooks."""
        self._handles = [
            optimizer.register_step_pre_hook(lambda opt, args, kwargs: self._before_step()),
            optimizer.register_step_post_hook(lambda opt, args, kwargs: self._after_step(opt)),
        ]
        _unclosed.add(self)

    def log(self, **metrics: float | torch.Tensor) -> None:
        """Store what the hooks cannot see with the step to come.

        Metrics are those of the schema: loss, gradient_norm (before clipping), clip_factor, tokens
        (seen so far, the step's own included).

        Raises
        ------
        InputError
            When a metric has another name, or is no number.
        """
        for name, value in metrics.items():
            if name not in TRAIN:
                raise InputError(f"no training metric {name!r}; there are: {', '.join(TRAIN)}")
            try:
                number = value.item() if isinstance(value, torch.Tensor) else value
                self._metrics[name] = float(number)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"the metric {name} is a number, not {value!r}") from error

    def log_validation(self, loss: float) -> None:
        """Store the loss on the validation part with the last step done."""
        if self._last_row is not None:
            self._last_row["validation_loss"] = loss

    @property
    def share(self) -> float:
        """The recorder's share of the time since it was made, from 0 to 1."""
        elapsed = time.perf_counter() - self._started
        return self.timings.seconds / elapsed if elapsed > 0 else 0.0

    def flush(self) -> None:
        """Write the training steps so far; call it before a checkpoint, so that the two agree."""
        self._guard(self._write_rows)

    def close(self) -> None:
        """Write what is left and let go of the optimizer."""
        try:
            self.flush()
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles = []
            self._before = None
            _unclosed.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _before_step(self) -> None:
        if self.stopped:
            return
        if self._last_row is not None:
            self._rows.append(self._last_row)
            self._last_row = None
        if self._schedule.due(self.step) and self.step != self._last_snapshot:
            self._take_snapshot()  # the state that training starts from
        if self._schedule.due(self.step + 1):
            self._guard(self._copy_weights)

    def _copy_weights(self) -> None:
        with self.timings.measure("copy"):
            self._before = [p.detach().clone() for p in self._parameters]

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.step += 1
        if self.stopped:
            return
        self._last_row = self._new_row(float(optimizer.param_groups[0]["lr"]))
        if self._schedule.due(self.step):
            self._take_snapshot()
        elif len(self._rows) >= ROWS_AT_ONCE:
            self._guard(self._write_complete_rows)

    def _take_snapshot(self) -> None:
        def take() -> None:
            arrays = measure_snapshot(
                self._model,
                self._parameters,
                self._probe,
                before=self._before,
                sketch=self._sketch,
                timings=self.timings,
            )
            with self.timings.measure("writing"):
                self._writer.write_snapshot(self.step, arrays)
            self._last_snapshot = self.step
            self._write_complete_rows()

        self._guard(take)
        self._before = None

    def _new_row(self, learning_rate: float) -> dict[str, float]:
        now = time.perf_counter()
        row = {"train_step": self.step, "learning_rate": learning_rate, **self._metrics}
        tokens = row.get("tokens")
        if tokens is not None:
            if self._row_tokens is not None:
                row["tokens_per_second"] = (tokens - self._row_tokens) / (now - self._row_time)
            self._row_tokens = tokens
        self._row_time = now
        self._metrics = {}
        return row

    def _write_rows(self) -> None:
        if self._last_row is not None:
            self._rows.append(self._last_row)
            self._last_row = None
        self._write_complete_rows()

    def _write_complete_rows(self) -> None:
        """All but the newest, whose validation loss may still come."""
        with self.timings.measure("writing"):
            self._writer.write_train_rows(self._rows)
        self._rows = []

    def _guard(self, work: Any) -> None:
        """Do some recording; if the store cannot be written, give up recording, not training."""
        if self.stopped:
            return
        try:
            work()
        except Exception as error:  # a full disk, no memory left, a decomposition that failed
            if self._strict:
                raise
            self._before = None
            reason = f"{type(error).__name__}: {error}"
            self.stopped = f"recording stopped at step {self.step}: {reason}"
            warnings.warn(f"{self.stopped}; training goes on", RuntimeWarning, stacklevel=2)


_unclosed: set[Recorder] = set()


def _close_all() -> None:
    for recorder in list(_unclosed):
        recorder.close()


# A script need not close its recorder. zarr writes through threads, which Python ends before it
# calls atexit's functions; these are called before.
getattr(threading, "_register_atexit", lambda function: None)(_close_all)


class NullRecorder:
    """Records nothing, for a loop that runs without a recorder."""

    share = 0.0
    stopped: str | None = None

    def log(self, **metrics: float) -> None:
        """Do nothing."""

    def log_validation(self, loss: float) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def describe(
    model: torch.nn.Module,
    probe: Probe | None,
    skipped: list[Skipped],
    attrs: Mapping[str, Any],
) -> dict[str, Any]:
    """The store's attributes: what run this is, and what is not in it."""
    inner = unwrapped(model)
    config: Any = getattr(inner, "config", None)
    described = {
        "name": attrs.get("model", type(inner).__name__),
        "class": type(inner).__name__,
        "parameters": sum(p.numel() for p in inner.parameters()),
    }
    if hasattr(config, "to_json_string"):
        described["config"] = json.loads(config.to_json_string(use_diff=False))
    return {
        **attrs,
        "kind": "run",
        "model": described,
        "config": attrs.get("config"),
        "software": {"python": platform.python_version()} | _versions(),
        "probe_sha256": probe_sha256(probe) if probe is not None else None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "skipped": [{"name": s.name, "reason": s.reason} for s in skipped],
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in SOFTWARE:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

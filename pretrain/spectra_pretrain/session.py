"""A training run from its options to its results: the same for pretraining and finetuning.

Only the `Job` differs: it prepares the model, the optimizer and the data, and writes the model. The
session handles the folder, the recorder, the loop, resuming, and the summary.
"""

import contextlib
import functools
import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.console import RenderableType

from spectra.commands.options import program_name
from spectra.machine.console import Console
from spectra.machine.devices import device_of
from spectra.machine.memory import peak_memory
from spectra.models.messages import silence_library_bars
from spectra.recording.micro_batches import Probe
from spectra.recording.recorder import NullRecorder, Recorder
from spectra.recording.start import record
from spectra.store.destination import make_folder
from spectra.store.durable import write_file
from spectra.store.location import exists
from spectra.store.lock import locked
from spectra_data.errors import InputError
from spectra_data.integrity import sealed, unsealed
from spectra_data.partial import remove_leftovers
from spectra_pretrain.checkpoint import RUN, Checkpoints, read_state, restore_random_state, step_of
from spectra_pretrain.display import open_display
from spectra_pretrain.loop import Outcome, Training, run_loop
from spectra_pretrain.machine import keep_freed_memory, precision_line
from spectra_pretrain.optionfile import differences, read_options, to_dict
from spectra_pretrain.options import RunOptions
from spectra_pretrain.signals import StopRequest

SUMMARY = "summary.json"
PARTS = ("spectra.zarr", "checkpoints", "model", "adapter")
Summary = dict[str, Any]
Options = TypeVar("Options", bound=RunOptions)


class RunInterruptedError(Exception):
    """A signal stopped the run, and everything is saved."""

    def __init__(self, signal: signal.Signals, message: str) -> None:
        super().__init__(message)
        self.signal = signal


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs before its first step, or its next."""

    training: Training
    probe: Probe
    options: RunOptions
    """Options of the run, with the values that were chosen for ``auto``."""
    lines: list[RenderableType]
    """Lines to print before the run."""
    write_checkpoint: Callable[[Path], None]
    """Writes the model, into a checkpoint's folder, for `Job.prepare` to read."""
    finish: Callable[[Path], Summary]
    """Writes the run's result after the last step, and returns further figures."""
    files: Mapping[str, Any] = field(default_factory=dict)
    """JSON files for the folder, by name."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the store."""


class Job(Protocol):
    """A kind of run."""

    command: str
    """Name of its command; NAME.json in the folder holds its options."""

    @property
    def options(self) -> RunOptions:
        """Everything that decides the run."""
        ...

    def prepare(
        self, latest: Path | None, out: Path, device: torch.device, console: Console
    ) -> Prepared:
        """Prepare the first step, or the one after the latest checkpoint."""
        ...


def run(job: Job, out: Path, *, resume: bool = False) -> Summary:
    """Train and record a run in `out`.

    Parameters
    ----------
    job
        Kind of run.
    out
        Folder of the run.
    resume
        Whether to continue from the last checkpoint in `out`; without one, the run starts.

    Returns
    -------
    The run's figures: steps, tokens, train_loss, validation_loss, validation_perplexity,
    tokens_per_second, recorder_share, store, evaluations, the reason if the recorder stopped before
    the end, and what the job adds.

    Raises
    ------
    InputError
        When the run cannot be made as the options say.
    NonFiniteError
        When the loss or a gradient is not finite.
    RunInterruptedError
        When SIGINT or SIGTERM arrived; the run can be resumed.
    """
    console = Console(stderr=True)
    silence_library_bars()
    _require_one_process()
    options = job.options
    checkpoints = Checkpoints(out / "checkpoints", options.checkpoints.keep_checkpoints)
    device = device_of(options.machine.device)
    keep_freed_memory(device)
    _require_folder(job, out, resume)
    with locked(out), _unless_refused(out):
        for folder in (out, checkpoints.folder):
            remove_leftovers(folder)
        latest = checkpoints.latest() if resume else None
        finished = read_json(out / SUMMARY)
        if latest and step_of(latest) == options.steps and finished is not None:
            console.print(f"{out} is finished: nothing left to do")
            return finished
        say = functools.partial(console.print, highlight=False, soft_wrap=True)
        if finished is None and (out / SUMMARY).exists():
            say(f"{out / SUMMARY} is damaged: repeating the end of the run")
        latest = checkpoints.whole(say) if resume else None
        _require_parts(job, latest, out)
        if latest:
            _restore_files(job, latest, out, say)
        return _train(job, out, device, checkpoints, latest, console, resume)


@contextlib.contextmanager
def _unless_refused(out: Path) -> Iterator[None]:
    """Remove the folder of a run that is refused, if it is empty."""
    try:
        yield
    except InputError:
        with contextlib.suppress(OSError):  # it is not empty
            out.rmdir()
        raise


def _train(
    job: Job,
    out: Path,
    device: torch.device,
    checkpoints: Checkpoints,
    latest: Path | None,
    console: Console,
    resume: bool,
) -> Summary:
    with StopRequest() as stop:
        prepared = job.prepare(latest, out, device, console)
        options, training = prepared.options, prepared.training
        state = read_state(latest) if latest else None
        if state:
            training.load_state(state)
        for line in [*prepared.lines, precision_line(options, device)]:
            console.print(line, highlight=False, soft_wrap=True)
        recorder = _open_recorder(prepared, out, resume)
        described = {f"{job.command}.json": to_dict(options), **prepared.files}
        files = {name: json.dumps(about, indent=2).encode() for name, about in described.items()}
        for name, content in files.items():
            write_file(out / name, content)

        def write_checkpoint(folder: Path) -> None:
            prepared.write_checkpoint(folder)
            for name, content in files.items():
                write_file(folder / RUN / name, content)

        try:
            with (
                peak_memory(device) as peak,
                open_display(console, training.step, options.steps) as display,
            ):
                if state:
                    restore_random_state(state)  # last: the recorder may have drawn numbers
                    display.say(f"resumed after step {training.step}")
                outcome = run_loop(training, recorder, checkpoints, write_checkpoint, display, stop)
        finally:
            recorder.close()
        if stop.signal and outcome.step < options.steps:
            saved = "checkpoint saved" if outcome.step else "nothing to save"
            raise RunInterruptedError(
                stop.signal,
                f"stopped after step {outcome.step} by {stop.signal.name}, {saved}; "
                f"{_how_to_resume(job, out)}",
            )
    further = _finished(job, prepared, out)
    summary = _summary(options, training, outcome, recorder, out)
    # if the run was resumed after its last step, another process had the peak
    summary |= {"peak_memory_bytes": peak[0] if training.seconds else None, **further}
    write_file(out / SUMMARY, sealed(summary))
    return summary


def _finished(job: Job, prepared: Prepared, out: Path) -> Summary:
    """Finish the run after its last step, whose checkpoint is saved."""
    try:
        return prepared.finish(out)
    except KeyboardInterrupt:
        raise RunInterruptedError(
            signal.SIGINT,
            f"stopped after the last step by SIGINT, checkpoint saved; {_how_to_resume(job, out)}",
        ) from None


def _how_to_resume(job: Job, out: Path) -> str:
    return f"resume with {program_name()} {job.command} --resume --out {out}"


def _summary(
    options: RunOptions,
    training: Training,
    outcome: Outcome,
    recorder: Recorder | NullRecorder,
    out: Path,
) -> Summary:
    return {
        "steps": outcome.step,
        "tokens": training.tokens,
        "train_loss": _finite(outcome.train_loss),
        "validation_loss": outcome.validation_loss,
        "validation_perplexity": math.exp(min(outcome.validation_loss, 700.0)),
        "tokens_per_second": _finite(outcome.tokens_per_second),
        "step_tokens_per_second": _finite(outcome.step_tokens_per_second),
        "recorder_share": recorder.share,
        "store": store_of(options, out) if options.recording.wanted else None,
        "evaluations": [asdict(evaluated) for evaluated in training.evaluations],
        "recorder_stopped": recorder.stopped,
        "recorder_seconds": dict(recorder.timings),
        "recorder_left_out": list(recorder.left_out),
    }


def _open_recorder(prepared: Prepared, out: Path, resume: bool) -> Recorder | NullRecorder:
    options = prepared.options
    if not options.recording.wanted:
        return NullRecorder()
    return record(
        prepared.training.model,
        prepared.training.optimizer,
        store_of(options, out),
        probe=prepared.probe,
        recording=options.recording,
        steps=options.steps,
        seed=options.seed,
        start_step=prepared.training.step,
        resume=resume,
        attrs={"config": to_dict(options), **prepared.attrs},
    )


def settled(options: Options, command: str, out: Path) -> Options:
    """Options in which `auto` is what the run in `out` chose when it began, if there is one."""
    name = f"{command}.json"
    for copy in (out / name, *sorted(out.glob(f"checkpoints/*/{RUN}/{name}"), reverse=True)):
        with contextlib.suppress(InputError):  # missing or damaged: refused, or restored, later
            return options.settled(read_options(copy, type(options)))
    return options


def store_of(options: RunOptions, out: Path) -> str:
    """Address of a run's recording."""
    return options.recorder.store or str(out / "spectra.zarr")


def read_json(file: Path) -> Summary | None:
    """A JSON object from a file; None if it is missing or damaged."""
    try:
        return unsealed(file.read_bytes())
    except (OSError, ValueError):
        return None


def _require_one_process() -> None:
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise InputError("training runs in one process so far: start it without torchrun")


def _require_folder(job: Job, out: Path, resume: bool) -> None:
    present = [name for name in (*OPTION_FILES, *PARTS) if (out / name).exists()]
    if present and not resume:
        raise InputError(
            f"{out} already holds a run: add --resume to continue it, remove it, or choose "
            "another --out"
        )
    others = [name for name in OPTION_FILES if name in present and name != f"{job.command}.json"]
    if others:
        raise InputError(f"{out} holds a run of `spectra {others[0].removesuffix('.json')}`")
    make_folder(out)


OPTION_FILES = ("pretrain.json", "finetune.json")


def _require_parts(job: Job, latest: Path | None, out: Path) -> None:
    """Resume only if every part of the run is still there."""
    name = f"{job.command}.json"
    if latest and not (out / name).exists():
        copy = latest / RUN / name
        way_out = f"restore it from {copy}" if copy.exists() else "start a new run"
        raise InputError(f"{out} has lost its {name}, which holds the options: {way_out}")
    store = store_of(job.options, out)
    if job.options.recording.wanted and latest and not exists(store):
        lost = "its spectra.zarr" if job.options.recorder.store is None else f"its store {store}"
        raise InputError(f"{out} has lost {lost}: restore it, or start a new run elsewhere")


def _restore_files(job: Job, latest: Path, out: Path, say: Callable[[str], None]) -> None:
    """Require the options that a checkpoint was made with, and restore its other files."""
    for copy in sorted((latest / RUN).glob("*.json")):
        own = out / copy.name
        if copy.name == f"{job.command}.json":
            original = read_options(copy, type(job.options))
            if changed := differences(original, job.options):
                raise InputError(
                    f"{own} is not what the run started with: {', '.join(changed)}; restore it "
                    f"from {copy}"
                )
        elif not own.exists() or own.read_bytes() != copy.read_bytes():
            say(f"{own} is not what {latest.name} was made with: restored from there")
            write_file(own, copy.read_bytes())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

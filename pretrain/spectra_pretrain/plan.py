"""The numbers of a run before it starts: parameters, snapshots, bytes and time."""

import dataclasses
import time
from dataclasses import dataclass
from uuid import uuid4

import fsspec
import numpy as np
import torch
from rich.filesize import decimal

from spectra.matrices import find_matrices, layer_of, stored_parameters, unwrapped
from spectra.recording.micro_batches import Probe
from spectra.recording.recorder import NullRecorder
from spectra.recording.start import record
from spectra.store.layout import Layout
from spectra_data.windows import Windows
from spectra_pretrain.display import duration
from spectra_pretrain.loop import Training
from spectra_pretrain.options import RunOptions

WARM_UP_STEPS = 2
MEASURED_STEPS = 2


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run."""

    parameters: int
    block_parameters: int
    matrices: int
    left_out: tuple[str, ...]
    """Weights inside blocks that are not recorded, with the reason."""
    snapshots: int
    store_bytes: dict[str, int]
    """Largest size of all snapshots, by what is recorded."""
    shared_memory: int
    """Bytes of the snapshots that may wait for the background process."""

    def lines(self, options: RunOptions, model: str, vocabulary: str) -> list[str]:
        """The arithmetic in words."""
        lines = [
            f"{model}: {self.parameters:,} parameters, {self.block_parameters:,} of "
            f"them in {self.matrices} block matrices; {vocabulary}",
            options.reading,
        ]
        if self.snapshots:
            total = decimal(sum(self.store_bytes.values()))
            parts = ", ".join(f"{n} {decimal(b)}" for n, b in self.store_bytes.items())
            lines.append(
                f"recording {_rhythm(options)}: {self.snapshots} snapshots; the store takes at "
                f"most {total} ({parts})"
            )
        else:
            lines.append("recording nothing (--record-every 0)")
        if self.shared_memory:
            lines.append(
                f"recording in the background: {options.recording.queue} snapshots may wait, in "
                f"{decimal(self.shared_memory)} of memory"
            )
        if self.left_out and self.snapshots:
            lines.append(f"not recorded: {', '.join(self.left_out)}")
        return lines


def _rhythm(options: RunOptions) -> str:
    """Schedule of the snapshots, in words."""
    schedule = options.recording.schedule(options.steps)
    if schedule.at is not None:
        return "at listed steps"
    early = " and early in doubling steps" if schedule.early else ""
    return f"every {schedule.every} steps{early}"


def make_plan(options: RunOptions, model: torch.nn.Module) -> Plan:
    """Count the parameters, snapshots and bytes of a run."""
    matrices, skipped = find_matrices(model)
    snapshots, store_bytes, shared_memory = 0, {}, 0
    if options.recording.wanted:
        recorded, skipped = find_matrices(model, options.recording.patterns)
        schedule = options.recording.schedule(options.steps)
        layout = Layout(
            tuple(recorded), schedule.snapshots, schedule.steps, options.recording.contents()
        )
        snapshots, store_bytes = layout.snapshots or 0, layout.sizes
        if options.recording.background != "off":
            copies = options.recording.queue * len(layout.contents.kinds)
            shared_memory = copies * sum(m.rows * m.cols for m in recorded) * 4
    sizes = {name: parameter.ndim for name, parameter in unwrapped(model).named_parameters()}
    left_out = tuple(
        f"{s.name} ({s.reason})"
        for s in skipped
        if layer_of(s.name) is not None and sizes.get(s.name, 2) > 1
    )
    return Plan(
        parameters=sum(p.numel() for p in model.parameters()),
        block_parameters=stored_parameters(matrices.values()),
        matrices=len(matrices),
        left_out=left_out,
        snapshots=snapshots,
        store_bytes=store_bytes,
        shared_memory=shared_memory,
    )


@dataclass(frozen=True)
class Forecast:
    """Time that a run will take, from a few measured steps."""

    step_seconds: float
    tokens_per_second: float
    """Speed of the measured steps."""
    snapshot_seconds: float
    """Seconds of a snapshot; 0 if nothing is recorded."""
    expected_seconds: float
    """Seconds of the run without evaluations and checkpoints."""

    def lines(self, options: RunOptions) -> list[str]:
        """The forecast in words."""
        speed = f"{self.tokens_per_second:,.0f} tokens/s"
        lines = [f"a step takes {self.step_seconds:.3f} s ({speed})"]
        if self.snapshot_seconds:
            share = 1 - options.steps * self.step_seconds / self.expected_seconds
            lines.append(
                f"a snapshot takes {self.snapshot_seconds:.3f} s ({share:.1%} of the time)"
            )
        expected = duration(self.expected_seconds)
        return [*lines, f"the run takes about {expected}, without evaluations and checkpoints"]


def measure(options: RunOptions, training: Training, probe: Probe | None) -> Forecast:
    """Time a few steps and one snapshot, and forecast the time of the run."""
    for _ in range(WARM_UP_STEPS):  # they allocate memory, and compile with --compile
        training.train_step(NullRecorder())
    started, before = time.perf_counter(), training.tokens
    for _ in range(MEASURED_STEPS):
        training.train_step(NullRecorder())
    seconds, tokens = time.perf_counter() - started, training.tokens - before
    step = seconds / MEASURED_STEPS
    snapshot, snapshots = 0.0, 0
    if probe is not None:
        snapshot = _snapshot_seconds(options, training, probe)
        snapshots = options.recording.schedule(options.steps).snapshots or 0
    expected = options.steps * step + snapshots * snapshot
    return Forecast(step, tokens / seconds, snapshot, expected)


def random_windows(options: RunOptions, vocab_size: int) -> Windows:
    """Random tokens to measure the speed on, enough for all measured steps."""
    count = options.tokens_per_step * (WARM_UP_STEPS + MEASURED_STEPS)
    tokens = np.random.default_rng(options.seed).integers(vocab_size, size=count, dtype=np.uint32)
    return Windows(tokens, options.batch.seq_len)


def _snapshot_seconds(options: RunOptions, training: Training, probe: Probe) -> float:
    """Seconds of one snapshot that is taken in the loop and written to memory."""
    once = dataclasses.replace(
        options.recording, every=[1], early=False, overhead=None, background="off", strict=True
    )
    store = f"memory://{uuid4().hex}.zarr"
    with record(
        training.model,
        training.optimizer,
        store,
        probe=probe,
        recording=once,
    ) as recorder:
        training.train_step(recorder)
        seconds = recorder.timings.seconds
    fsspec.filesystem("memory").rm(store, recursive=True)
    return seconds

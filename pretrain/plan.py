"""What a run will do, in numbers, before it does it."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from data.windows import Windows
from pretrain.display import duration
from pretrain.loop import Training
from pretrain.options import PretrainOptions
from spectra.matrices import find_matrices, layer_of
from spectra.record.recorder import NullRecorder, layout_of
from spectra.record.schedule import Schedule
from spectra.record.sketch import CountSketch
from spectra.record.snapshot import Timings, measure_snapshot

MEASURED_STEPS = 2


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run."""

    parameters: int
    block_parameters: int
    matrices: int
    left_out: tuple[str, ...]
    """Weights inside of blocks that are not recorded, since they are not of linear layers."""
    vocabulary: str
    snapshots: int
    store_bytes: int

    def lines(self, options: PretrainOptions) -> list[str]:
        """The arithmetic in words."""
        batch, steps = options.batch, options.steps
        accumulation = batch.batch_size // options.micro_batch_size
        passes = f" in {accumulation} passes" if accumulation > 1 else ""
        lines = [
            f"model {options.model}: {self.parameters:,} parameters, {self.block_parameters:,} of "
            f"them in {self.matrices} block matrices; {self.vocabulary}",
            f"batch {batch.batch_size} windows{passes} x {batch.seq_len} tokens = "
            f"{options.tokens_per_step:,} tokens a step; "
            f"{steps:,} steps = {options.tokens:,} tokens",
        ]
        if self.snapshots:
            lines.append(
                f"recording every {options.recorder.record_every} steps: {self.snapshots} "
                f"snapshots; the store takes at most {readable_bytes(self.store_bytes)}"
            )
        else:
            lines.append("recording nothing (--record-every 0)")
        if self.left_out and self.snapshots:
            lines.append(f"not recorded, not of linear layers: {', '.join(self.left_out)}")
        return lines


def make_plan(options: PretrainOptions, model: torch.nn.Module, vocabulary: str) -> Plan:
    """Count what a run has."""
    matrices, skipped = find_matrices(model)
    sizes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    left_out = tuple(s.name for s in skipped if layer_of(s.name) is not None and sizes[s.name] > 1)
    snapshots = store_bytes = 0
    if options.recorder.record_every:
        schedule = Schedule(options.recorder.record_every, options.steps)
        probe = torch.zeros(1, 1, dtype=torch.long)
        snapshots = schedule.snapshots or 0
        store_bytes = layout_of(list(matrices), schedule, probe, options.recorder.sketch).nbytes
    return Plan(
        parameters=sum(p.numel() for p in model.parameters()),
        block_parameters=sum(p.numel() for p in matrices.values()),
        matrices=len(matrices),
        left_out=left_out,
        vocabulary=vocabulary,
        snapshots=snapshots,
        store_bytes=store_bytes,
    )


@dataclass(frozen=True)
class Forecast:
    """What a run will take, from a few steps that were made."""

    step_seconds: float
    snapshot_seconds: float
    """0 where nothing is recorded."""
    expected_seconds: float
    """Without evaluations and checkpoints."""

    def lines(self, options: PretrainOptions) -> list[str]:
        """The forecast in words."""
        speed = options.tokens_per_step / self.step_seconds
        lines = [f"a step takes {self.step_seconds:.3f} s ({speed:,.0f} tokens/s)"]
        if self.snapshot_seconds:
            share = 1 - options.steps * self.step_seconds / self.expected_seconds
            lines.append(
                f"a snapshot takes {self.snapshot_seconds:.3f} s ({share:.1%} of the time)"
            )
        expected = duration(self.expected_seconds)
        return [*lines, f"the run takes about {expected}, without evaluations and checkpoints"]


def measure(options: PretrainOptions, training: Training, probe: torch.Tensor | None) -> Forecast:
    """Make two steps and one snapshot on random tokens, and say how long the run would take."""
    training.train_step(NullRecorder())  # the first step allocates, and compiles where asked
    started = time.perf_counter()
    for _ in range(MEASURED_STEPS):
        training.train_step(NullRecorder())
    step = (time.perf_counter() - started) / MEASURED_STEPS
    snapshot, snapshots = 0.0, 0
    if probe is not None:
        snapshot = _snapshot_seconds(options, training, probe)
        snapshots = Schedule(options.recorder.record_every, options.steps).snapshots or 0
    return Forecast(step, snapshot, options.steps * step + snapshots * snapshot)


def random_windows(options: PretrainOptions, vocab_size: int) -> Windows:
    """Tokens to measure the speed on, for as many steps as are measured."""
    count = options.tokens_per_step * (MEASURED_STEPS + 1)
    tokens = np.random.default_rng(options.seed).integers(vocab_size, size=count, dtype=np.uint32)
    return Windows(tokens, options.batch.seq_len)


def readable_bytes(count: int) -> str:
    """A number of bytes as a person reads it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _snapshot_seconds(options: PretrainOptions, training: Training, probe: torch.Tensor) -> float:
    matrices, _ = find_matrices(training.model)
    parameters = list(matrices.values())
    sketch = CountSketch(options.recorder.sketch, options.seed) if options.recorder.sketch else None
    timings = Timings()
    before = [p.detach().clone() for p in parameters]
    measure_snapshot(
        training.model, parameters, probe, before=before, sketch=sketch, timings=timings
    )
    return timings.seconds

"""A training step, and a snapshot beside it: seconds, by what they are spent on; memory and bytes.

Every model is measured in one process, at a batch of 8 windows of 256 tokens: without a recorder,
with histogram hooks on all gradients as `wandb.watch` places them, and with a recorder that takes a
full snapshot (spectra of weight, gradient and update, sketches) at every step. Overhead at a
cadence is a snapshot's seconds over those of the steps between two. "own/step in background" is the
loop's own time for a snapshot when another process does the rest, over a step. Peak memory is of
the resident set, read while a snapshot is taken and while only training goes on. The precision is
the one that `--precision auto` chooses.

Takes five minutes of processor time with bfloat16 instructions. SPECTRA_BENCH_MODELS names other
presets, such as llama_130m, which takes longer.
"""

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from spectra.machine.devices import device_of
from spectra.recording.recorder import NullRecorder
from spectra.recording.start import record
from spectra_data.windows import Windows
from spectra_pretrain.batches import WindowBatches, WindowValidation
from spectra_pretrain.loop import Training
from spectra_pretrain.machine import chosen
from spectra_pretrain.options import BatchOptions, PretrainOptions
from spectra_pretrain.preparation import Data, prepare_trainee, training_of
from spectra_pretrain.run import new_model
from tests.benchmarks.histograms import HistogramHooks
from tests.benchmarks.timing import median_seconds

MODELS = "llama_9m llama_60m"
RUNS = {"llama_9m": 5}
"""How many runs the median is taken of, 3 for others."""
PROBE_WINDOWS = (4, 8)
CADENCES = (20, 100, 500)


def run() -> list[dict[str, object]]:
    """Measure every model."""
    names = os.environ.get("SPECTRA_BENCH_MODELS", MODELS).split()
    return [row for name in names for row in _measure(name, RUNS.get(name, 3))]


def _measure(name: str, runs: int) -> Iterator[dict[str, object]]:
    device = device_of("auto")
    options = PretrainOptions(model=name, batch=BatchOptions(seq_len=256, batch_size=8))
    options = chosen(options, device)
    trainee = prepare_trainee(options, new_model(options, 32_000, None), None, device)
    tokens = np.random.default_rng(0).integers(32_000, size=200_000, dtype=np.uint16)
    windows = Windows(tokens, 256)
    batches, validation = WindowBatches(windows, 0, 8), WindowValidation(windows, 256, 1)
    first = torch.from_numpy(windows.read(np.arange(1)))
    training = training_of(options, trainee, Data(batches, validation, first, "", {}), device)
    model = trainee.model
    step = median_seconds(lambda: training.train_step(NullRecorder()), runs)
    with peak_memory() as training_peak:
        training.train_step(NullRecorder())
    with HistogramHooks(model, every=1):
        watched = median_seconds(lambda: training.train_step(NullRecorder()), runs)
    for probe_windows in PROBE_WINDOWS:
        probe = torch.from_numpy(windows.read(np.arange(probe_windows)))
        row: dict[str, object] = {"model": name, "precision": options.precision}
        row |= {"probe windows": probe_windows, "step": step}
        row["step with histograms"] = watched
        row |= _snapshot(training, probe, runs, step, training_peak[0])
        if probe_windows == PROBE_WINDOWS[0]:
            beside = _own_seconds_in_background(training, probe, runs)
        yield row | {"own/step in background": beside / step}


def _snapshot(
    training: Training, probe: torch.Tensor, runs: int, step: float, training_peak: float
) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "bench.zarr"
        with record(training.model, training.optimizer, store, probe=probe, every=1) as recorder:
            training.train_step(recorder)  # takes two snapshots
            recorder.timings.clear()
            with peak_memory() as peak:
                for _ in range(runs):
                    training.train_step(recorder)
            parts = {part: seconds / runs for part, seconds in recorder.timings.items()}
            block = sum(m.rows * m.cols for m in recorder.layout.matrices) * 4
        size = sum(f.stat().st_size for f in store.rglob("*") if f.is_file()) / (runs + 2)
    parts.pop("gathering", None)
    snapshot = sum(parts.values())
    row: dict[str, object] = {"snapshot": snapshot} | dict(sorted(parts.items()))
    row |= {f"at {every}": f"{snapshot / (every * step):.2%}" for every in CADENCES}
    row["snapshot/step"] = snapshot / step
    row["memory/block"] = max(0.0, peak[0] - training_peak) / block
    return row | {"kB a snapshot": size / 1e3}


def _own_seconds_in_background(training: Training, probe: torch.Tensor, runs: int) -> float:
    """The loop's own seconds for a snapshot that another process decomposes and writes."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "bench.zarr"
        with record(
            training.model, training.optimizer, store, probe=probe, every=1, background="wait"
        ) as recorder:
            taken = []
            for _ in range(runs):
                training.train_step(recorder)
                recorder.flush()  # the next one finds the queue empty
                own = {k: v for k, v in recorder.timings.items() if k != "waiting"}
                taken.append(sum(own.values()))
                recorder.timings.clear()
            return sum(taken[1:]) / len(taken[1:])


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The most memory of this process during a block, in bytes; read a hundred times a second."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        if torch.cuda.is_available():
            peak[0] = float(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()


def _resident() -> float:
    with Path("/proc/self/statm").open() as f:
        return float(f.read().split()[1]) * 4096

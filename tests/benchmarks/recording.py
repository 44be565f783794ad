"""A training step, and a snapshot beside it: seconds, by what they are spent on.

The overhead is computed from the two: a snapshot's seconds over the steps between two snapshots.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from data.windows import Windows
from pretrain.loop import Training
from pretrain.options import BatchOptions, PretrainOptions
from pretrain.run import _new_model, _optimizer
from spectra.recording.recorder import NullRecorder
from spectra.recording.start import record
from tests.benchmarks.timing import median_seconds

MODELS = {"llama_9m": 5, "llama_60m": 2}
"""By name, how many runs the median is taken of."""
CADENCES = (25, 100, 500)


def run() -> list[dict[str, object]]:
    """Measure every model at a batch of 8 windows of 256 tokens."""
    return [_measure(name, runs) for name, runs in MODELS.items()]


def _measure(name: str, runs: int) -> dict[str, object]:
    options = PretrainOptions(model=name, batch=BatchOptions(seq_len=256, batch_size=8))
    model = _new_model(options, 32_000, None)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokens = np.random.default_rng(0).integers(32_000, size=200_000, dtype=np.uint16)
    windows = Windows(tokens, 256)
    training = Training(options, model, _optimizer(options, model), windows, windows)
    step = median_seconds(lambda: training.train_step(NullRecorder()), runs)
    probe = torch.from_numpy(windows.read(np.arange(8)))
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "bench.zarr"
        with record(model, training.optimizer, store, probe=probe, every=1) as recorder:
            training.train_step(recorder)  # takes two snapshots
            recorder.timings.clear()
            for _ in range(runs):
                training.train_step(recorder)
            parts = {part: seconds / runs for part, seconds in recorder.timings.items()}
        size = sum(f.stat().st_size for f in store.rglob("*") if f.is_file()) / (runs + 2)
    snapshot = sum(parts.values())
    row: dict[str, object] = {"model": name, "step": step, "snapshot": snapshot}
    row |= dict(sorted(parts.items()))
    row |= {f"at {every}": f"{snapshot / (every * step):.2%}" for every in CADENCES}
    return row | {"snapshot/step": snapshot / step, "kB a snapshot": size / 1e3}

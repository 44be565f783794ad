"""Finetuning through LRCs against full finetuning: SmolLM2-135M at ERR 50 %, length 512, batch 1.

All methods train the same compressed model in one process, their steps taken in turns, so that the
machine's moods meet them alike. Seconds are medians of whole optimizer steps, without evaluations
and checkpoints; bytes are those of gradients and optimizer state, as the run's table counts them.
The precision is the one that `--precision auto` chooses. In float32 it takes five minutes of
processor time, three of them in 35 steps.
"""

import statistics
import tempfile
import time
from dataclasses import replace

import numpy as np

from spectra.allocation.allocate import allocate
from spectra.compression.compress import compress
from spectra.machine.devices import device_of
from spectra.recording.recorder import NullRecorder
from spectra.scanning.scan import scan
from spectra_pretrain.batches import WindowBatches, WindowValidation, of_windows
from spectra_pretrain.finetuning.base_model import BaseModel
from spectra_pretrain.finetuning.options import FinetuneOptions
from spectra_pretrain.finetuning.run import trainee_of
from spectra_pretrain.machine import chosen, keep_freed_memory
from spectra_pretrain.memory import total
from spectra_pretrain.options import BatchOptions
from spectra_pretrain.plan import random_windows
from spectra_pretrain.preparation import Data, training_of
from spectra_pretrain.ways import TrainedOptions
from tests.smollm import FILE, FOLDER, smollm

METHODS = ("full", "lrc", "nlrc", "lora", "galore")
TURNS = 5
WARM_UP = 2


def run() -> list[dict[str, object]]:
    """Measure every method."""
    smollm()
    device = device_of("auto")
    keep_freed_memory(device)
    with tempfile.TemporaryDirectory() as folder:
        address = str(FOLDER / FILE)
        rank_map = allocate(scan(address, f"{folder}/scan.zarr"), err=0.5)
        compress(address, rank_map, f"{folder}/compressed")
        base = BaseModel(f"{folder}/compressed")
        trainings, sizes = {}, {}
        for method in METHODS:
            options = FinetuneOptions(
                checkpoint=base.address,
                steps=WARM_UP + TURNS,
                batch=BatchOptions(seq_len=512, batch_size=1),
                trained=replace(TrainedOptions(), train=method),
            )
            options = chosen(options, device)
            trainee = trainee_of(options, base, device)
            windows = random_windows(options, len(base.tokenizer))
            batches = WindowBatches(windows, 0, 1)
            probe = of_windows(windows.read(np.arange(1)))
            data = Data(batches, WindowValidation(windows, 512, 1), probe, "", {})
            trainings[method] = training_of(options, trainee, data, device)
            sizes[method] = total(trainee.groups(options), trained=True)
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        for turn in range(WARM_UP + TURNS):
            for method, training in trainings.items():
                started = time.perf_counter()
                training.train_step(NullRecorder())
                if turn >= WARM_UP:
                    seconds[method].append(time.perf_counter() - started)
    medians = {method: statistics.median(found) for method, found in seconds.items()}
    whole = sizes["full"].gradient_bytes + sizes["full"].optimizer_bytes
    return [
        {
            "train": method,
            "precision": options.precision,
            "trained parameters": size.parameters,
            "tokens/s": 512 / medians[method],
            "against full": medians["full"] / medians[method],
            "gradients + optimizer MB": (size.gradient_bytes + size.optimizer_bytes) / 1e6,
            "of full's": (size.gradient_bytes + size.optimizer_bytes) / whole,
        }
        for method, size in sizes.items()
    ]

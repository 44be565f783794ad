"""Compressed checkpoints and finetuning runs of an experiment, each made once, in a folder."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.errors import InputError
from spectra.allocation.allocate import allocate
from spectra.compression.compress import compress
from spectra.experiments.ledger import Row
from spectra.experiments.settings import Settings
from spectra.experiments.tuning import Tuning
from spectra.scanning.scan import scan

EVALUATIONS = 10
"""Of a run, evenly over its steps."""
EVALUATED = 16
"""Windows or so of an evaluation."""
Progress = Callable[[str, int, int], None]


class Lab:
    """Makes what an experiment compares.

    Every run is a process of its own, by the command `spectra finetune`, so that its peak of memory
    is its own; a run that was killed is resumed.
    """

    def __init__(
        self,
        address: str,
        settings: Settings,
        tuning: Tuning,
        folder: Path,
        device: str,
        progress: Progress,
    ) -> None:
        self.address, self.settings, self.tuning = address, settings, tuning
        self.folder, self.device, self.progress = folder, device, progress

    def compressed(self, err: float) -> str:
        """The checkpoint at an ERR, by WeLore's ranks; the dense one at 0."""
        if err == 0:
            return self.address
        target = self.folder / "compressed" / f"err-{err:g}"
        if not (target / "config.json").exists():
            rank_map = allocate(scan(self.address, self.folder / "scan.zarr"), err=err)
            if not any(module.factored for module in rank_map.modules):
                raise InputError(
                    f"at ERR {err:.0%} no matrix of {self.address} is an LRC: there is nothing to "
                    "finetune through"
                )
            needs_text = self.tuning.compression != "svd"
            compress(
                self.address,
                rank_map,
                target,
                method=self.tuning.compression,
                calibration=self.settings.calibrated() if needs_text else None,
                device=self.device,
                check_weights=False,
                progress=self.progress,
            )
        return str(target)

    def on_text(self, err: float, train: str) -> Row:
        """A run of continual finetuning: its figures and its evaluations."""
        data = self.tuning.train_data or self.settings.data
        own = ["--data", data, "--validation-fraction", "0.05"]
        return self._run(f"text-{err:g}-{train}", err, train, self.settings.seed, own)

    def on_task(self, err: float, train: str, task: str, seed: int) -> Row:
        """A run of downstream finetuning, with the accuracy on the test questions."""
        own = ["--task", task, "--task-data", self.tuning.task_data]
        own += ["--questions", str(self.tuning.questions), "--validation-fraction", "0.1"]
        return self._run(f"{task}-{err:g}-{train}-{seed}", err, train, seed, own)

    def _run(self, name: str, err: float, train: str, seed: int, own: list[str]) -> Row:
        tuning, settings = self.tuning, self.settings
        out = self.folder / "runs" / name
        every = max(1, tuning.steps // EVALUATIONS)
        options = {
            "train": train,
            "steps": tuning.steps,
            "seq-len": settings.seq_len,
            "batch-size": tuning.tuning_batch,
            "micro-batch-size": 1,
            "learning-rate": tuning.learning_rate,
            "warmup": 0.05,
            "lora-rank": tuning.lora_rank,
            "galore-rank": tuning.galore_rank,
            "precision": tuning.precision,
            "eval-every": every,
            "eval-tokens": EVALUATED * settings.seq_len,
            "checkpoint-every": max(50, every),
            "keep-checkpoints": 1,
            "record-every": 0,
            "seed": seed,
            "save": "adapter",
            "device": self.device,
        }
        command = [sys.executable, "-m", "spectra.cli", "finetune", self.compressed(err), *own]
        command += [part for k, v in options.items() for part in (f"--{k}", str(v))]
        command += ["--out", str(out), "--resume", "--json"]
        self.progress(f"run {name}", 0, 1)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it printed nothing"]
            raise InputError(f"the run {name} failed: {lines[-1]}")
        found: Row = json.loads(done.stdout.strip().splitlines()[-1])
        for part in ("checkpoints", "adapter", "model"):
            shutil.rmtree(out / part, ignore_errors=True)
        self.progress(f"run {name}", 1, 1)
        return {key: found.get(key) for key in KEPT} | {"parameters": found["parameters"]}


KEPT: tuple[Any, ...] = (
    "steps", "tokens", "train_loss", "validation_loss", "validation_perplexity",
    "step_tokens_per_second", "trained_parameters", "weight_bytes", "gradient_bytes",
    "optimizer_bytes", "peak_memory_bytes", "evaluations", "accuracy", "accuracy_low",
    "accuracy_high", "correct", "total", "unparsed",
)  # fmt: skip

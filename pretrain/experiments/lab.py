"""Compressed checkpoints and finetuning runs, each made once for all experiments of a folder."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.sources import open_source
from data.tasks import task_fingerprint
from spectra.allocation.allocate import allocate
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.compression.compress import compress
from spectra.experiments.ledger import Row
from spectra.experiments.settings import Settings
from spectra.experiments.tuning import Tuning
from spectra.scanning.scan import scan
from spectra.store.durable import write_file

EVALUATIONS = {"text": 10, "task": 4}
"""Of a run, evenly over its steps."""
EVALUATED = 16
"""Windows or so of an evaluation."""
RESULT = "result.json"
KEPT = (
    "steps", "tokens", "train_loss", "validation_loss", "validation_perplexity",
    "step_tokens_per_second", "trained_parameters", "parameters", "weight_bytes", "gradient_bytes",
    "optimizer_bytes", "peak_memory_bytes", "evaluations", "accuracy", "accuracy_low",
    "accuracy_high", "correct", "total", "unparsed",
)  # fmt: skip
Progress = Callable[[str, int, int], None]


class Lab:
    """Makes what an experiment compares.

    Every run is a process of its own, by the command `spectra finetune`, so that its peak of memory
    is its own; a run that was killed is resumed. What is made lies under a name with a hash of all
    that it depends on, so that experiments share a folder and what they have in common.
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
        self._identity = open_checkpoint(address).identity

    def compressed(self, err: float) -> str:
        """The checkpoint at an ERR, by WeLore's ranks; the dense one at 0."""
        if err == 0:
            return self.address
        target = self.folder / "compressed" / _named(f"err-{err:g}", self._compression(err))
        if not (target / "config.json").exists():
            store = self.folder / f"scan-{self._identity[:8]}.zarr"
            rank_map = allocate(scan(self.address, store), err=err)
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

    def on_text(self, err: float, train: str, seed: int) -> Row:
        """A run of continual finetuning: its figures and its evaluations."""
        data = self.tuning.train_data or self.settings.data
        own = self._evaluated("text") | {"data": data, "validation-fraction": 0.05}
        own["micro-batch-size"] = 1
        content = open_source(data).fingerprint()
        return self._run(f"text-{err:g}-{train}", err, train, seed, own, content)

    def on_task(self, err: float, train: str, task: str, seed: int) -> Row:
        """A run of downstream finetuning, with the accuracy on the test questions."""
        own = self._evaluated("task") | {
            "task": task,
            "task-data": self.tuning.task_data,
            "questions": self.tuning.questions,
            "validation-fraction": 0.1,
        }
        content = task_fingerprint(task, self.tuning.task_data)
        return self._run(f"{task}-{err:g}-{train}", err, train, seed, own, content)

    def _run(
        self, name: str, err: float, train: str, seed: int, own: dict[str, Any], content: str
    ) -> Row:
        options = self._options(train, seed) | own
        known = {
            "options": options,
            "content": content,
            "identity": self._identity,
            "compression": self._compression(err) if err else None,
        }
        out = self.folder / "runs" / _named(f"{name}-{seed}", known)
        if (out / RESULT).exists():
            return _read(out / RESULT)
        command = [sys.executable, "-m", "spectra.cli", "finetune", self.compressed(err)]
        command += [part for k, v in options.items() for part in (f"--{k}", str(v))]
        command += ["--out", str(out), "--resume", "--json"]
        self.progress(f"run {name}-{seed}", 0, 1)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it printed nothing"]
            raise InputError(f"the run {out} failed: {lines[-1]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        row = {key: found.get(key) for key in KEPT}
        write_file(out / RESULT, json.dumps({"made_of": known, "row": row}, indent=1).encode())
        for part in ("checkpoints", "adapter", "model"):
            shutil.rmtree(out / part, ignore_errors=True)
        self.progress(f"run {name}-{seed}", 1, 1)
        return row

    def _compression(self, err: float) -> dict[str, Any]:
        """All that a compressed checkpoint depends on."""
        known = {"identity": self._identity, "err": err, "method": self.tuning.compression}
        if self.tuning.compression != "svd":
            settings = self.settings
            known |= {"text": settings.fingerprints().get("calibration", settings.calibration)}
            known |= {"windows": settings.calibration_windows, "length": settings.seq_len}
            known |= {"seed": settings.seed}
        return known

    def _evaluated(self, on: str) -> dict[str, Any]:
        every = max(1, self.tuning.steps // EVALUATIONS[on])
        return {"eval-every": every, "checkpoint-every": max(50, every)}

    def _options(self, train: str, seed: int) -> dict[str, Any]:
        tuning, settings = self.tuning, self.settings
        own: dict[str, Any] = {}
        if train == "lora":
            own = {"lora-rank": tuning.lora_rank}
        elif train == "galore":
            own = {"galore-rank": tuning.galore_rank}
        return {
            "train": train,
            **own,
            "steps": tuning.steps,
            "seq-len": settings.seq_len,
            "batch-size": tuning.tuning_batch,
            "learning-rate": tuning.learning_rate,
            "warmup": 0.05,
            "precision": tuning.precision,
            "eval-tokens": EVALUATED * settings.seq_len,
            "keep-checkpoints": 1,
            "record-every": 0,
            "seed": seed,
            "save": "adapter",
            "device": self.device,
        }


def _named(name: str, known: dict[str, Any]) -> str:
    text = json.dumps(known, sort_keys=True, default=str)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _read(file: Path) -> Row:
    try:
        row: Row = json.loads(file.read_text())["row"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged: remove {file.parent}") from error
    return row

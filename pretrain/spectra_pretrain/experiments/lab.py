"""Compressed checkpoints and finetuning runs, each made once for all experiments of a folder."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from spectra import __version__
from spectra.calibration.options import Calibration
from spectra.experiments.child import finished
from spectra.experiments.ledger import Ledger, Row
from spectra.machine.devices import device_of
from spectra.machine.interpreter import run_module
from spectra.machine.progress import Progress
from spectra_data.errors import InputError
from spectra_pretrain.experiments.settings import TrainingSettings
from spectra_pretrain.finetuning.options import FinetuneOptions
from spectra_pretrain.optionfile import read_options
from spectra_pretrain.options import AUTO

Settings = TypeVar("Settings", bound=TrainingSettings)
EVALUATED = 16
"""Approximate number of windows per evaluation."""
RESULT = "result.json"
KEPT = (
    "steps", "tokens", "train_loss", "validation_loss", "validation_perplexity",
    "step_tokens_per_second", "trained_parameters", "parameters", "weight_bytes", "gradient_bytes",
    "optimizer_bytes", "peak_memory_bytes", "evaluations", "accuracy", "accuracy_low",
    "accuracy_high", "correct", "total", "unparsed",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A run of an experiment."""

    err: float
    train: str
    seed: int
    task: str | None = None
    """Name of the task; None for text."""

    @property
    def name(self) -> str:
        """Name of its folder, before the hash."""
        return f"{self.task or 'text'}-{self.err:g}-{self.train}-{self.seed}"


class Lab:
    """Makes the checkpoints and runs that an experiment compares.

    Every run is a process of its own, by the command `spectra finetune`, so that its peak memory is
    its own; a killed run is resumed. The name of each result has a hash of all that it depends on,
    so that experiments can share a folder and what they have in common.
    """

    def __init__(
        self,
        address: str,
        settings: TrainingSettings,
        folder: Path,
        device: str,
        progress: Progress,
    ) -> None:
        self.address, self.settings = address, settings
        self.folder, self.device, self.progress = folder, device, progress
        self._identity = _identity(address)

    @staticmethod
    def chosen(settings: Settings, folder: Path, device: str) -> Settings:
        """Settings with the precision of the runs in a lab, or one that suits the device.

        A lab whose runs differ in precision is ignored.
        """
        if settings.precision != AUTO:
            return settings
        known = set()
        for file in folder.glob("runs/*/finetune.json"):
            with contextlib.suppress(InputError):  # damaged: refused when it is that run's turn
                known.add(read_options(file, FinetuneOptions).precision)
        from spectra_pretrain.machine import suited

        precision = known.pop() if len(known) == 1 else suited(device_of(device))
        return replace(settings, precision=precision)

    def compressed(self, err: float) -> str:
        """The checkpoint at an ERR, by WeLore's ranks; the dense one at 0."""
        if err == 0:
            return self.address
        target = self.folder / "compressed" / _named(f"err-{err:g}", self._compression(err))
        if not (target / "config.json").exists():
            from spectra.allocation.allocate import allocate
            from spectra.compression.compress import compress
            from spectra.scanning.scan import scan

            store = self.folder / f"scan-{self._identity[:8]}.zarr"
            rank_map = allocate(scan(self.address, store), err=err)
            if not any(module.factored for module in rank_map.modules):
                raise InputError(
                    f"at ERR {err:.0%} no matrix of {self.address} is an LRC: there is nothing to "
                    "finetune through"
                )
            data_free = self.settings.compression == "svd"
            compress(
                self.address,
                rank_map,
                target,
                method=self.settings.compression,
                calibration=Calibration() if data_free else self.settings.calibrated(),
                device=self.device,
                check_weights=False,
                progress=self.progress,
            )
        return str(target)

    def require(self, cells: Sequence[Cell]) -> None:
        """Require everything that runs will need, before the first of them.

        Raises
        ------
        InputError
            When a text, a task's files or a package is missing.
        """
        for task in dict.fromkeys(cell.task for cell in cells):
            self.settings.content(task)
        if any(cell.train in ("lora", "dora") for cell in cells):
            from spectra.models.adapter import require_peft

            require_peft()

    def row(self, cell: Cell) -> Row:
        """A run's figures, its evaluations, and its accuracy on a task's test questions."""
        options = self._options(cell)
        known = {
            "options": options,
            "content": self.settings.content(cell.task),
            "identity": self._identity,
            "compression": self._compression(cell.err) if cell.err else None,
        }
        out = self.folder / "runs" / _named(cell.name, known)
        key = {"err": cell.err, "train": cell.train, "seed": cell.seed}
        key |= {} if cell.task is None else {"task": cell.task}
        ledger = Ledger(out / RESULT, known, remove=out)
        row = ledger.cell({}, lambda: self._finetuned(cell.err, options, out))
        for part in ("checkpoints", "adapter", "model"):
            shutil.rmtree(out / part, ignore_errors=True)
        return key | row

    def _finetuned(self, err: float, options: dict[str, Any], out: Path) -> Row:
        """The figures of a run, which is made or resumed until it finishes."""
        command = [*run_module("spectra.cli"), "finetune", self.compressed(err)]
        command += [part for k, v in options.items() for part in (f"--{k}", str(v))]
        found = finished([*command, "--out", str(out), "--resume", "--json"], f"the run {out}")
        return {column: found.get(column) for column in KEPT}

    def _compression(self, err: float) -> dict[str, Any]:
        """All that a compressed checkpoint depends on."""
        known = {"identity": self._identity, "err": err, "method": self.settings.compression}
        if self.settings.compression != "svd":
            settings = self.settings
            known |= {"text": settings.fingerprints().get("calibration", settings.calibration)}
            known |= {"windows": settings.calibration_windows, "length": settings.seq_len}
            known |= {"seed": settings.seed}
        return known

    def _options(self, cell: Cell) -> dict[str, Any]:
        settings = self.settings
        every = max(1, settings.steps // settings.EVALUATIONS)
        options: dict[str, Any] = {
            "train": cell.train,
            "warmup": 0.05,
            "eval-every": every,
            "eval-tokens": EVALUATED * settings.seq_len,
            "checkpoint-every": max(50, every),
            "keep-checkpoints": 1,
            "record-every": 0,
            "seed": cell.seed,
            "save": "adapter",
            "device": self.device,
        }
        return options | settings.finetune_options(cell.train, cell.task)


def _identity(address: str) -> str:
    """Hash of a checkpoint, its tokenizer, and the version of this package."""
    from spectra.models.source import Source

    source = Source(address)
    origin = source.content or source.checkpoint.identity
    tokenizer: Any = source.tokenizer
    known = (origin, tokenizer.backend_tokenizer.to_str(), __version__)
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _named(name: str, known: dict[str, Any]) -> str:
    text = json.dumps(known, sort_keys=True, default=str)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

"""The paper's table 3: memory for inference by ERR and context length, each in its own process."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from spectra.experiments.child import finished
from spectra.experiments.experiment import Presentation
from spectra.experiments.ledger import Ledger, Row
from spectra.experiments.measured import MeasuredExperiment, Setup
from spectra.experiments.settings import DataSettings, StorageSettings
from spectra.experiments.writing import Point
from spectra.keywords import Share
from spectra.machine.interpreter import run_module


@dataclass(frozen=True)
class MemorySettings(StorageSettings, DataSettings):
    """Options of table 3."""

    memory_errs: tuple[Share, ...] = (0.0, 0.3, 0.5, 0.7)
    """Effective rank reductions to measure; 0 is the dense model."""
    contexts: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Context lengths to measure, in tokens."""


@dataclass(frozen=True)
class MemoryExperiment(MeasuredExperiment):
    """Table 3, whose figure draws one line per row: the peaks by context."""

    def points(self, rows: Sequence[Row]) -> Iterator[Point]:
        """Points of the figure."""
        for row in rows:
            for key, value in row.items():
                if key.startswith("peak_"):
                    yield int(key.removeprefix("peak_")), value, self.label(row)


def table3(setup: Setup, ledger: Ledger) -> Iterator[Row]:
    """Parameters, bytes of weights, and the peak at every context length.

    Checkpoints are compressed by WeLore's SVD and removed afterwards; the dense one is measured
    unchanged. Each is loaded in its own process, since its peak would include what others left
    behind.
    """
    for err in setup.settings.memory_errs:
        yield ledger.cell({"err": err}, partial(_measured, setup, err))


def _measured(setup: Setup, err: float) -> Row:
    from spectra.allocation.allocate import allocate
    from spectra.compression.compress import compress
    from spectra.scanning.scan import scan

    address = setup.checkpoint
    if err == 0:
        return _in_process(address, setup)
    made = setup.folder / f"compressed-{err:g}"
    shutil.rmtree(made, ignore_errors=True)
    rank_map = allocate(scan(address, setup.folder / "scan.zarr"), err=err)
    if not any(module.factored for module in rank_map.modules):
        return _in_process(address, setup)  # nothing is an LRC yet
    compress(address, rank_map, made, device=setup.device, check_weights=False)
    try:
        return _in_process(str(made), setup)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _in_process(address: str, setup: Setup) -> Row:
    settings: MemorySettings = setup.settings
    command = [*run_module("spectra.cli"), "evaluate", address, "--json", "--speed"]
    command += ["--data", settings.data, "--text-field", settings.text_field]
    command += ["--windows", "1", "--seq-len", str(settings.seq_len)]
    command += ["--dtype", settings.stored, "--device", setup.device, "--contexts"]
    command += [str(context) for context in settings.contexts]
    found = finished(command, f"measuring {address}")
    row: Row = {
        "parameters": found["parameters"],
        "weight_bytes": found["weight_bytes"],
        "prefill": found["speed"]["prefill"],
        "decode": found["speed"]["decode"],
    }
    return row | {f"peak_{m['context']}": m["peak_bytes"] for m in found["memory"]}


TABLE3 = MemoryExperiment(
    "table3",
    MemorySettings,
    Presentation(
        "Table 3: memory for inference by ERR and context length",
        ("err", "parameters", "weight_bytes", "peak", "prefill", "decode"),
        "context",
        "peak memory, bytes",
        "context, tokens",
        log=False,
    ),
    table3,
    lambda row: f"ERR {row['err']:.0%}",
)

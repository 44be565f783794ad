"""The paper's table 3: memory for inference by ERR and context length, each in its own process."""

import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from spectra.allocation.allocate import allocate
from spectra.compression.compress import compress
from spectra.experiments.child import finished
from spectra.experiments.ledger import Ledger, Row
from spectra.experiments.settings import Settings
from spectra.scanning.scan import scan


def table3(
    address: str, settings: Settings, folder: Path, device: str, ledger: Ledger
) -> Iterator[Row]:
    """Parameters, bytes of weights, and the peak at every context length.

    Checkpoints are compressed by WeLore's SVD and removed after; the dense one is measured as it
    is. Each is loaded by a process of its own, as its peak would hold what others left behind.
    """
    for err in settings.memory_errs:
        yield ledger.cell({"err": err}, partial(_measured, address, settings, folder, device, err))


def _measured(address: str, settings: Settings, folder: Path, device: str, err: float) -> Row:
    if err == 0:
        return _in_process(address, settings, device)
    made = folder / f"compressed-{err:g}"
    shutil.rmtree(made, ignore_errors=True)
    rank_map = allocate(scan(address, folder / "scan.zarr"), err=err)
    if not any(module.factored for module in rank_map.modules):
        return _in_process(address, settings, device)  # nothing is an LRC yet
    compress(address, rank_map, made, device=device, check_weights=False)
    try:
        return _in_process(str(made), settings, device)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _in_process(address: str, settings: Settings, device: str) -> Row:
    command = [sys.executable, "-m", "spectra.cli", "evaluate", address, "--json", "--speed"]
    command += ["--data", settings.data, "--windows", "1", "--seq-len", str(settings.seq_len)]
    command += ["--dtype", settings.stored, "--device", device, "--contexts"]
    command += [str(context) for context in settings.contexts]
    found = finished(command, f"measuring {address}")
    row: Row = {
        "parameters": found["parameters"],
        "weight_bytes": found["weight_bytes"],
        "prefill": found["speed"]["prefill"],
        "decode": found["speed"]["decode"],
    }
    return row | {f"peak_{m['context']}": m["peak_bytes"] for m in found["memory"]}

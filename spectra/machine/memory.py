"""How much memory work takes."""

import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROCESS = Path("/proc/self")


@contextmanager
def peak_memory(device: "torch.device") -> Iterator[list[int]]:
    """Measure the peak of what is inside; a list with it, filled at the end."""
    found = [0]
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found[0] = torch.cuda.max_memory_allocated(device)
        return
    _reset_peak()
    yield found
    found[0] = resident_peak()


def resident_peak() -> int:
    """Bytes that this process had resident at most, since the peak was last reset."""
    status = PROCESS / "status"
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def peak_memory_bytes(*, children: bool = False) -> int:
    """The most memory that this process had resident, or the largest that it started."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if children:
        peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return int(peak) * unit


def _reset_peak() -> None:
    """Linux counts the peak anew; elsewhere it is that of the whole process."""
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return

"""Memory that work takes."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import torch

PROCESS = Path("/proc/self")


@contextmanager
def peak_memory(device: "torch.device") -> Iterator[list[int]]:
    """Measure the peak memory of a block; yields a list that holds the bytes at the end."""
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


def free_memory(device: "torch.device") -> int:
    """Bytes of memory that a device has free, without making other processes swap."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def resident() -> int:
    """Resident memory of this process, in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def resident_peak() -> int:
    """Peak resident memory of this process since it was last reset, in bytes."""
    status = PROCESS / "status"
    if status.exists():
        for line in status.read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
    import psutil

    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def peak_memory_bytes(*, children: bool = False) -> int:
    """Peak resident bytes of this process; with `children`, at least that of its largest child.

    On Windows, that of this process alone.
    """
    peak = resident_peak()  # getrusage's would be at least that of the process that started this
    if children and resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = max(peak, int(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * unit)
    return peak


def _reset_peak() -> None:
    """Reset the peak on Linux; elsewhere it stays that of the whole process."""
    try:
        (PROCESS / "clear_refs").write_text("5", "utf-8")
    except OSError:
        return

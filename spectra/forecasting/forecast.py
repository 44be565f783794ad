"""A forecast of a command: bytes to read, memory, disk, and time by stages."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.filesize import decimal


@dataclass(frozen=True)
class Stage:
    """A stage of a command, and the seconds that it will take."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """What a command will read, need and take."""

    reads: int
    """Bytes to read from the checkpoint, as often as they are read."""
    memory: int
    """Largest resident memory in bytes."""
    writes: int
    """Bytes of the result."""
    stages: tuple[Stage, ...]
    scratch: int = 0
    """Largest number of bytes in the cache, which are removed or kept afterwards."""
    remarks: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds in all, without the start of Python."""
        return sum(stage.seconds for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The forecast as JSON."""
        found = asdict(self) | {"seconds": self.seconds}
        return found | {"stages": {stage.name: stage.seconds for stage in self.stages}}

    def lines(self, out: object = None) -> Iterator[str]:
        """The forecast in words."""
        yield f"reads {decimal(self.reads)}, needs {decimal(self.memory)} of memory" + (
            f" and {decimal(self.scratch)} of scratch" if self.scratch else ""
        )
        if out is not None:
            yield f"writes {decimal(self.writes)} to {out}"
        yield f"takes about {duration(self.seconds)}:"
        width = max(len(stage.name) for stage in self.stages)
        for stage in self.stages:
            yield f"  {stage.name:<{width}}  {duration(stage.seconds)}"
        yield from self.remarks
        yield "nothing was written (--dry-run)"


def duration(seconds: float) -> str:
    """A length of time, to two or three digits: ``0.4 s``, ``12 s``, ``3:05 min``, ``7:12 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"

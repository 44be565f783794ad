"""Progress of long work, and what it took."""

import resource
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 30.0
"""Between lines of progress where there is no terminal."""


class Shown:
    """Progress on a terminal as a bar, elsewhere as a line now and then."""

    def __init__(self, console: Console, unit: str = "") -> None:
        self._console = console
        self._unit = f" {unit}" if unit else ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: Any = None
        self._started = self._said = time.monotonic()

    def __enter__(self) -> "Shown":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, name: str, done: int, count: int) -> None:
        """Show that so many steps of a stage are done."""
        if self._console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task(name)
            self._bar.update(self._task, description=name, completed=done, total=count)
        elif time.monotonic() - self._said > QUIET_SECONDS or done == count:
            self._said = time.monotonic()
            minutes, seconds = divmod(int(self._said - self._started), 60)
            line = f"{name}: {done} of {count}{self._unit}, {minutes}:{seconds:02d}"
            print(f"{line}, peak {peak_memory_bytes() / 1e9:.2f} GB", file=sys.stderr, flush=True)


def peak_memory_bytes(*, children: bool = False) -> int:
    """The most memory that this process had resident, or the largest that it started."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if children:
        peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return int(peak) * unit

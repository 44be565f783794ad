"""Progress of long work."""

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from spectra.machine.memory import peak_memory_bytes
from spectra_data.errors import printable

Progress = Callable[[str, int, int], None]
"""Called with a stage, the number of its steps done, and the number of all."""

QUIET_SECONDS = 30.0
"""Seconds between lines of progress without a terminal."""


def silent(stage: str, done: int, count: int) -> None:
    """Show nothing."""


class Shown:
    """Progress as a bar on a terminal, as an occasional line elsewhere."""

    def __init__(self, console: Console, unit: str = "") -> None:
        self._console = console
        self._unit = f" {unit}" if unit else ""
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
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
        """Show how many steps of a stage are done."""
        if self._console.is_terminal:
            name = printable(name)  # before rich measures its width
            if self._task is None:
                self._task = self._bar.add_task(name)
            self._bar.update(self._task, description=name, completed=done, total=count)
        elif time.monotonic() - self._said > QUIET_SECONDS or done == count:
            self._said = time.monotonic()
            minutes, seconds = divmod(int(self._said - self._started), 60)
            line = f"{name}: {done} of {count}{self._unit}, {minutes}:{seconds:02d}"
            print(f"{line}, peak {peak_memory_bytes() / 1e9:.2f} GB", file=sys.stderr, flush=True)

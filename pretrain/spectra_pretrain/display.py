"""Progress of a run: a bar on a terminal, now and then a line elsewhere."""

import time
from dataclasses import dataclass
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Status:
    """State of a run after a step."""

    step: int
    loss: float
    tokens_per_second: float
    recorder_share: float
    seconds: float
    """Seconds of the loop in this process."""


class Display(Protocol):
    """Shows the progress of a run."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def update(self, status: Status) -> None:
        """Show the state after a step."""
        ...

    def say(self, message: str) -> None:
        """Show a line that stays."""
        ...


def open_display(console: Console, start: int, steps: int) -> Display:
    """The display that fits the console."""
    if console.is_terminal:
        return BarDisplay(console, start, steps)
    return LineDisplay(console, start, steps)


class BarDisplay:
    """A progress bar with step, loss, tokens/s, time left and the recorder's share of the time."""

    def __init__(self, console: Console, start: int, steps: int) -> None:
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            TextColumn("recorder {task.fields[share]}", style="dim"),
            console=console,
        )
        self._task = self._progress.add_task(
            "", total=steps, completed=start, loss="-", speed="-", share="-"
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, status: Status) -> None:
        self._progress.update(
            self._task,
            completed=status.step,
            loss=f"{status.loss:.3f}",
            speed=f"{status.tokens_per_second:,.0f}",
            share=f"{status.recorder_share:.1%}",
        )

    def say(self, message: str) -> None:
        self._progress.console.print(message, highlight=False)


class LineDisplay:
    """A line every ten seconds, for log files."""

    def __init__(self, console: Console, start: int, steps: int) -> None:
        self._console, self._start, self._steps = console, start, steps
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def update(self, status: Status) -> None:
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES and status.step < self._steps:
            return
        self._last = now
        done = status.step - self._start
        left = status.seconds / max(1, done) * (self._steps - status.step)
        self.say(
            f"step {status.step}/{self._steps}  loss {status.loss:.3f}  "
            f"{status.tokens_per_second:,.0f} tokens/s  {duration(left)} left  "
            f"recorder {status.recorder_share:.1%}"
        )

    def say(self, message: str) -> None:
        self._console.print(message, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

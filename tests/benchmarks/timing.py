"""How long something takes: the median of several runs after a first one that is not counted."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def median_seconds(work: Callable[[], Any], runs: int = 5) -> float:
    """Median wall-clock seconds of `runs` runs."""
    work()
    seconds = []
    for _ in range(runs):
        _wait()
        started = time.perf_counter()
        work()
        _wait()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_once(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of one run, for what takes minutes."""
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started

"""Where the recorder's seconds go."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Timings(defaultdict[str, float]):
    """Seconds of the training loop by what the recorder spent them on."""

    def __init__(self) -> None:
        super().__init__(float)
        self.parts: defaultdict[str, float] = defaultdict(float)
        """Seconds by part of a snapshot, since they were last cleared."""

    @contextmanager
    def measure(self, activity: str, part: str | None = None) -> Iterator[None]:
        """Count the seconds of a block; leaving out `part` would save them."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self[activity] += seconds
            if part is not None:
                self.parts[part] += seconds

    def divide(self, seconds: float, weights: Mapping[str, float]) -> None:
        """Charge seconds that are already counted to parts, by their weights."""
        total = sum(weights.values())
        for part, weight in weights.items():
            self.parts[part] += seconds * weight / total

    @property
    def seconds(self) -> float:
        return sum(self.values())

"""Recording inside the training loop: snapshots are measured and written before it continues."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from spectra.recording.measure import Arrays, Captured, Measure, assemble, bytes_by_part
from spectra.recording.processes import Processes
from spectra.recording.timings import Timings
from spectra.store.layout import Contents
from spectra.store.writer import StoreWriter

Rows = Sequence[Mapping[str, float]]


class Executor(Protocol):
    """Measures and writes snapshots, in this process or in another."""

    def begin(self, step: int, contents: Contents) -> bool:
        """Begin a snapshot; return False if it has to be dropped."""

    def take(self, kind: str, matrices: Sequence[Captured]) -> None:
        """Take over one kind of this process's matrices, which the caller then releases."""

    def finish(self) -> None:
        """Write the snapshot, or have it written, once all kinds are taken."""

    def write_rows(self, rows: Rows) -> None:
        """Write training steps."""

    def before_update(self) -> None:
        """Called when the optimizer is about to change the weights."""

    def flush(self) -> None:
        """Return when everything handed over is written."""

    def close(self) -> None:
        """Flush, and release the store."""


class Inline(Executor):
    """Measures at once; with several processes, the first one gathers and writes."""

    def __init__(
        self, measure: Measure, writer: StoreWriter | None, processes: Processes, timings: Timings
    ) -> None:
        self._measure, self._writer = measure, writer
        self._processes, self._timings = processes, timings
        self._arrays: Arrays = {}

    def begin(self, step: int, contents: Contents) -> bool:
        self._step, self._contents, self._arrays = step, contents, {}
        return True

    def take(self, kind: str, matrices: Sequence[Captured]) -> None:
        self._arrays |= self._measure(kind, matrices, self._contents)

    def finish(self) -> None:
        with self._timings.measure("gathering"):
            shares = self._processes.gather((self._measure.members, self._arrays))
        self._arrays = {}
        if self._writer is None:
            return
        before = self._timings["writing"]
        with self._timings.measure("writing"):
            row = assemble(self._measure.layout, self._contents, shares)
            self._writer.write_snapshot(self._step, row)
        self._timings.divide(self._timings["writing"] - before, bytes_by_part(row))

    def write_rows(self, rows: Rows) -> None:
        if self._writer is not None:
            with self._timings.measure("writing"):
                self._writer.write_train_rows(rows)

    def before_update(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

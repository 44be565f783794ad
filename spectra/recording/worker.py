"""The recording process of `background`: reads lines of JSON, measures, writes, answers.

It leaves signals to the training process, which may want to flush after one, and ends at once when
that process is gone: what was committed to the store stays, the rest was never announced.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from typing import Any

from spectra.recording.background import SharedMatrices
from spectra.recording.measure import Arrays, Measure, assemble
from spectra.recording.sketch import CountSketch
from spectra.recording.timings import Timings
from spectra.store.layout import Contents, Layout
from spectra.store.writer import StoreWriter

NICENESS = 10
"""The training process comes first where both want the same core."""


class Worker:
    """Handles the messages of the training process, in order."""

    def __init__(self, begin: dict[str, Any]) -> None:
        layout = Layout.from_dict(begin["layout"])
        sketch = None
        if layout.contents.sketch:
            sketch = CountSketch(layout.contents.sketch, begin["sketch_seed"])
        self._timings = Timings()
        self._layout = layout
        self._measure = Measure(layout, range(len(layout.matrices)), sketch, self._timings)
        self._memory = SharedMatrices(layout, begin["slots"], begin["memory"])
        self._writer = StoreWriter.of_child(begin["store"], layout)

    def handle(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Handle a message and return the answer, if it has one."""
        if "settle" in message:
            return {"settled": message["settle"]}
        if "rows" in message:
            with self._timings.measure("writing"):
                self._writer.write_train_rows(message["rows"])
            return None
        contents = Contents.from_dict(message["contents"])
        arrays: Arrays = {}
        for kind, statuses in message["kinds"].items():
            matrices = self._memory.get(message["slot"], kind, statuses)
            arrays |= self._measure(kind, matrices, contents)
        with self._timings.measure("writing"):
            row = assemble(self._layout, contents, [(self._measure.members, arrays)])
            self._writer.write_snapshot(message["step"], row)
        return {"slot": message["slot"], "seconds": self._timings}


def main() -> None:
    """Work until the training process closes its end or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    # what a library prints goes to stderr; only answers go to the training process
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            messages.put(json.loads(line))
        os._exit(0)  # closed after settling, or killed: there is nothing to wait for

    threading.Thread(target=read, daemon=True).start()
    try:
        worker = Worker(messages.get())
        while True:
            answer = worker.handle(messages.get())
            if answer is not None:
                print(json.dumps(answer), file=answers, flush=True)
    except Exception as error:  # errors in recording are reported, not printed
        reason = f"{type(error).__name__}: {error}"
        print(json.dumps({"error": reason}), file=answers, flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()

"""Recording in the background: a process measures and writes what the training loop copies to it.

The loop's own time for a snapshot is the probe gradient and a copy. The copies are in memory that
both processes share, in as many slots as snapshots may wait; when all are taken, the loop waits, or
drops the snapshot and counts it. The memory has no name: it is freed with the last of the two
processes, however they end. On CUDA the copies go through pinned memory on a stream of their own.

The process (`worker`) reads its instructions as lines of JSON and is the only one to write to the
store, so there are never two writers; it ends when the training process does.
"""

import contextlib
import json
import mmap
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from spectra.machine.interpreter import run_module, search_path
from spectra.quantities import QUANTITIES
from spectra.recording.inline import Executor, Rows
from spectra.recording.measure import Captured
from spectra.recording.timings import Timings
from spectra.store.layout import Contents, Layout
from spectra.store.location import Location
from spectra.store.lock import FolderLock
from spectra.store.schema import Status, out_of_range

WhenFull = Literal["wait", "drop"]


class WorkerError(RuntimeError):
    """The recording process failed or ended; training can go on without it."""


class Background(Executor):
    """Copies matrices to a process of its own, which measures and writes them."""

    def __init__(
        self,
        location: Location,
        layout: Layout,
        memory: "SharedMatrices",
        lock: FolderLock | None,
        sketch_seed: int,
        timings: Timings,
        *,
        when_full: WhenFull,
        slots: int,
    ) -> None:
        self.worker_seconds: dict[str, float] = {}
        """Seconds of the process by what it spent them on."""
        self._layout, self._lock, self._timings = layout, lock, timings
        self._when_full = when_full
        self._memory = memory
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(slots):
            self._free.put(slot)
        self._slot: int | None = None
        self._failure: str | None = None
        self._written = threading.Condition()
        self._settles_requested = self._settles_done = 0
        self._outbox: queue.SimpleQueue[tuple[Any, dict[str, Any]] | None] = queue.SimpleQueue()
        self._worker = self._start(location, sketch_seed, slots)
        self._sender = threading.Thread(target=self._send_in_order, daemon=True)
        self._sender.start()
        if lock:
            lock.on_lost = self._end_worker
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def nbytes(self) -> int:
        """Bytes that the copies take."""
        return self._memory.nbytes

    def begin(self, step: int, contents: Contents) -> bool:
        self._require_worker()
        if self._slot is not None:  # from a step that was never finished
            self._free.put(self._slot)
            self._slot = None
        try:
            self._slot = self._free.get_nowait()
        except queue.Empty:
            if self._when_full == "drop":
                return False
            with self._timings.measure("waiting"):
                self._slot = self._wait_for_slot()
        self._message: dict[str, Any] = {
            "step": step,
            "slot": self._slot,
            "contents": contents.to_dict(),
            "kinds": {},
        }
        return True

    def take(self, kind: str, matrices: Sequence[Captured]) -> None:
        assert self._slot is not None
        with self._timings.measure("copy", kind):
            statuses = self._memory.put(self._slot, kind, matrices)
        self._message["kinds"][kind] = statuses

    def finish(self) -> None:
        message, self._slot = self._message, None
        self._post(message, self._memory.copied())

    def write_rows(self, rows: Rows) -> None:
        self._post({"rows": list(rows)})

    def before_update(self) -> None:
        self._memory.hold_device()

    def flush(self) -> None:
        with self._timings.measure("waiting"):
            self._settle()

    def close(self) -> None:
        try:
            if self._failure is None:
                self._settle()
        finally:
            self._end_worker()
            self._memory.close()
            if self._lock:
                self._lock.release()

    def _start(self, location: Location, sketch_seed: int, slots: int) -> "subprocess.Popen[str]":
        inherited = [self._memory.descriptor]
        if self._lock and self._lock.descriptor is not None:
            inherited.append(self._lock.descriptor)  # the store stays held until both have ended
        with _signals_held():  # the process inherits this, until it ignores them
            worker = subprocess.Popen(
                run_module("spectra.recording.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                pass_fds=inherited,
                env=os.environ | search_path(),
                start_new_session=True,  # Ctrl-C is for the training process, which may flush
            )
        self._worker = worker
        self._send(
            {
                "store": str(location),
                "layout": self._layout.to_dict(),
                "sketch_seed": sketch_seed,
                "memory": self._memory.descriptor,
                "slots": slots,
            }
        )
        return worker

    def _end_worker(self) -> None:
        """End the process: at once, unless it has settled."""
        self._outbox.put(None)
        self._sender.join()
        assert self._worker.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already
            self._worker.stdin.close()
        self._worker.wait()

    def _post(self, message: dict[str, Any], ready: Any = None) -> None:
        """Queue a message, to be sent after those before it, and after a CUDA event if given."""
        self._require_worker()
        self._outbox.put((ready, message))

    def _send_in_order(self) -> None:
        """Send queued messages, waiting for the device here so that the training loop does not."""
        for ready, message in iter(self._outbox.get, None):
            try:
                if ready is not None:
                    ready.synchronize()
                self._send(message)
            except Exception as error:  # from the device, or the process
                self._fail(f"{type(error).__name__}: {error}")

    def _settle(self) -> None:
        """Return when the process has handled every message so far."""
        self._settles_requested += 1
        self._post({"settle": self._settles_requested})
        with self._written:
            self._written.wait_for(
                lambda: self._settles_done >= self._settles_requested or self._failure
            )
        self._require_worker()

    def _wait_for_slot(self) -> int:
        while True:
            try:
                return self._free.get(timeout=0.2)
            except queue.Empty:
                self._require_worker()

    def _send(self, message: dict[str, Any]) -> None:
        self._require_worker()
        assert self._worker.stdin is not None
        try:
            self._worker.stdin.write(json.dumps(message) + "\n")
            self._worker.stdin.flush()
        except OSError:  # nobody reads it any more
            self._fail(self._ending())
            self._require_worker()

    def _require_worker(self) -> None:
        if self._lock and self._lock.lost:
            raise WorkerError("the store was closed, or reopened by another recorder")
        if self._failure is not None:
            raise WorkerError(self._failure)

    def _fail(self, reason: str) -> None:
        with self._written:
            self._failure = self._failure or reason
            self._written.notify_all()

    def _listen(self) -> None:
        assert self._worker.stdout is not None
        with self._worker.stdout as answers:
            for line in answers:
                try:
                    answer = json.loads(line)
                except ValueError:
                    continue  # what a library printed while it was imported
                self._hear(answer)
        self._fail(self._ending())

    def _ending(self) -> str:
        """How the process ended, in words."""
        return f"the recording process has ended with status {self._worker.wait()}"

    def _hear(self, answer: dict[str, Any]) -> None:
        if "error" in answer:
            self._fail(answer["error"])
        if "slot" in answer:
            self.worker_seconds = answer["seconds"]
            self._free.put(answer["slot"])
        if "settled" in answer:
            with self._written:
                self._settles_done = answer["settled"]
                self._written.notify_all()


class SharedMatrices:
    """Memory for snapshots that a child process can share."""

    def __init__(self, layout: Layout, slots: int, descriptor: int | None = None) -> None:
        """Allocate the memory, or map the parent's by its file descriptor."""
        self._kinds = layout.contents.kinds
        self._shapes = {
            kind: [QUANTITIES[kind].sides(m.rows, m.cols) for m in layout.matrices]
            for kind in self._kinds
        }
        sizes = [rows * cols for shapes in self._shapes.values() for rows, cols in shapes]
        ends = np.cumsum([0, *sizes]).tolist()
        number = len(layout.matrices)
        self._offsets = {k: ends[i * number :] for i, k in enumerate(self._kinds)}
        self._slot_size = sum(sizes)
        count = slots * self._slot_size
        self.nbytes = 4 * max(1, count)
        self.descriptor = _nameless_memory(self.nbytes) if descriptor is None else descriptor
        self._map = mmap.mmap(self.descriptor, self.nbytes)
        self._floats = torch.frombuffer(self._map, dtype=torch.float32, count=max(1, count))
        self._stream: Any = None

    def view(self, slot: int, kind: str, number: int) -> torch.Tensor:
        """The memory of a matrix: (rows, cols), float32."""
        start = slot * self._slot_size + self._offsets[kind][number]
        rows, cols = self._shapes[kind][number]
        return self._floats[start : start + rows * cols].view(rows, cols)

    def put(self, slot: int, kind: str, matrices: Sequence[Captured]) -> list[int]:
        """Copy matrices and return the status of each."""
        statuses = []
        for number, matrix in enumerate(matrices):
            if isinstance(matrix, Status):
                statuses.append(int(matrix))
                continue
            if matrix.dtype == torch.float64 and out_of_range(
                float(matrix.detach().abs().max().nan_to_num(0.0, 0.0)), np.float32
            ):
                statuses.append(int(Status.OUT_OF_RANGE))
                continue
            statuses.append(int(Status.MEASURED))
            target = self.view(slot, kind, number)
            if matrix.device.type == "cuda":
                self._copy_from_cuda(matrix.detach(), target)
            else:
                target.copy_(matrix.detach())
        return statuses

    def get(self, slot: int, kind: str, statuses: Sequence[int]) -> list[Captured]:
        """The matrices that were copied, sharing the memory."""
        return [
            self.view(slot, kind, number) if status == Status.MEASURED else Status(status)
            for number, status in enumerate(statuses)
        ]

    def copied(self) -> Any:
        """CUDA event that fires when the copies are done; None if they already are."""
        return None if self._stream is None else self._stream.record_event()

    def hold_device(self) -> None:
        """Keep the device from changing captured matrices before they are copied."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def close(self) -> None:
        """Free the memory."""
        if self._stream is not None:
            self._stream.synchronize()
            _cudart().cudaHostUnregister(self._floats.data_ptr())
        self._floats = torch.empty(0)  # the last reference to the mapping
        del self._map
        os.close(self.descriptor)

    def _copy_from_cuda(self, matrix: torch.Tensor, target: torch.Tensor) -> None:
        if self._stream is None:
            # pinned once: without it a copy would block the host
            _cudart().cudaHostRegister(self._floats.data_ptr(), self.nbytes, 0)
            self._stream = torch.cuda.Stream(matrix.device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(matrix.device))
        with torch.cuda.stream(self._stream):
            target.copy_(matrix.float().contiguous(), non_blocking=True)
        matrix.record_stream(self._stream)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold signals back, here and in a process that is started meanwhile."""
    numbers = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _nameless_memory(nbytes: int) -> int:
    """File descriptor of memory that is freed with the last process that has it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("spectra")
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, nbytes)
    return descriptor

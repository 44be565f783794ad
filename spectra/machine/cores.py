"""Cores for decompositions: one matrix per core beats one matrix on all cores."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    import torch

S = TypeVar("S")
T = TypeVar("T")


class _OneThread:
    """Limits BLAS to one thread while any thread is inside, and restores its setting afterwards."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limits = _blas().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limits.restore_original_limits()


one_blas_thread = _OneThread()
"""Context for work that several threads do in parallel: ``with one_blas_thread:``."""


@functools.cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries of this process; finding them takes milliseconds."""
    return ThreadpoolController()


def available_cores() -> int:
    """Number of cores for this process; under torchrun, its share of them."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))


def in_threads(function: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """Apply a function to items, one per core, and yield the results in their order.

    A call inside such a function runs in its own thread: pools do not nest, so that there are never
    more threads than cores.
    """
    workers = min(available_cores(), len(items))
    if workers < 2 or getattr(_of_a_pool, "here", False):
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers, "core", initializer=_enter_pool) as pool:
        yield from pool.map(function, items)


_of_a_pool = threading.local()


def _enter_pool() -> None:
    _of_a_pool.here = True


def map_matrices(
    function: "Callable[[torch.Tensor], T]", matrices: "Sequence[torch.Tensor]"
) -> list[T]:
    """Apply a function to matrices on the CPU, one matrix per core, in their order."""
    with one_blas_thread:
        return list(in_threads(function, matrices))


@contextlib.contextmanager
def single_threaded_workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads limit torch, too, to one core; its former setting is restored after."""
    import torch

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "matrix", initializer=torch.set_num_threads, initargs=(1,))
    try:
        with one_blas_thread:
            yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        # torch's setting belongs to the thread, but MKL's beneath it to the process
        torch.set_num_threads(threads)

"""The workers of a scan: threads of this process, or processes of a dask cluster."""

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from spectra.checkpoint.address import Address
from spectra.checkpoint.checkpoint import Checkpoint
from spectra.machine.cores import available_cores, single_threaded_workers
from spectra.machine.interpreter import search_path
from spectra.matrices import Matrix
from spectra.scanning.decomposition import (
    DecompositionOptions,
    Spectrum,
    decompose,
    decompose_group,
    unread,
    weights,
    working_bytes,
)
from spectra_data.errors import InputError

READ_AHEAD = 1
"""Number of weights in memory besides those being decomposed."""
SCHEDULER_SECONDS = 10
SPAWNED = "distributed.nanny.pre-spawn-environ"
"""Setting of dask: variables of the processes that it starts."""
IGNORE_INTERRUPTS = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"
Groups = Sequence[Sequence[Matrix]]


def in_threads(
    checkpoint: Checkpoint, groups: Groups, options: DecompositionOptions
) -> Iterator[Spectrum]:
    """Spectra in the order of completion; one matrix per core, while the next is read."""
    if not groups:
        return
    count = threads_for([matrix for group in groups for matrix in group], options)
    slots = threading.Semaphore(count + READ_AHEAD)
    with single_threaded_workers(count) as pool:
        pending: set[Future[Spectrum]] = set()
        for group in groups:
            reader = weights(checkpoint, group)
            for _ in group:
                # acquire before reading: a weight that was read occupies memory
                acquired = False
                while not acquired:
                    acquired = slots.acquire(timeout=0.05)
                    done, pending = wait(pending, timeout=0)
                    yield from _results(done)
                matrix, weight = next(reader)
                if isinstance(weight, str):
                    slots.release()
                    yield unread(matrix, weight)
                    continue
                future = pool.submit(decompose, matrix, weight, options)
                future.add_done_callback(lambda _: slots.release())
                pending.add(future)
                del weight
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from _results(done)


def threads_for(matrices: Iterable[Matrix], options: DecompositionOptions) -> int:
    """Number of matrices that are decomposed at once: one a core, as far as memory allows."""
    if options.device != "cpu":
        return 1  # the device decomposes one at a time; the host reads ahead
    largest = max(working_bytes(matrix, options) for matrix in matrices)
    return max(1, min(available_cores(), _half_of_memory() // largest))


def _results(done: set[Future[Spectrum]]) -> Iterator[Spectrum]:
    """The results of finished futures; failures are raised after all other results."""
    failed = [future for future in done if future.exception() is not None]
    for future in done - set(failed):
        yield future.result()
    for future in failed:
        future.result()


def in_cluster(
    client: Any, address: Address, groups: Groups, options: DecompositionOptions
) -> Iterator[Spectrum]:
    """Spectra in the order in which a dask cluster completes them.

    Each process reads its own matrices, so all must see the checkpoint at the same address.
    """
    from distributed import as_completed

    name = uuid4().hex
    shared = address if address.is_hub_name or "://" in address.place else address.resolved()
    futures = [
        client.submit(decompose_group, shared, list(group), options, name, pure=False)
        for group in groups
    ]
    try:
        for future in as_completed(futures):
            yield from future.result()
    finally:
        client.cancel(futures)


@contextmanager
def cluster(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """A client of the cluster at `scheduler`, or of a local one of `workers` processes; else None.

    Raises
    ------
    InputError
        When no scheduler answers at the address.
    """
    if scheduler is None and workers is None:
        yield None
        return
    import dask
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=SCHEDULER_SECONDS)
        except (OSError, ValueError) as error:
            raise InputError(f"no dask scheduler answers at {scheduler}: {error}") from error
        with client:
            yield client
        return
    with (
        dask.config.set({f"{SPAWNED}.{name}": value for name, value in search_path().items()}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            host="127.0.0.1",
            silence_logs=logging.CRITICAL,
            preload=IGNORE_INTERRUPTS,  # only the parent process handles Ctrl-C
            memory_limit=0,
        ) as local,
        Client(local) as client,
    ):
        yield client


def _half_of_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):  # not available on this system
        return 4 << 30

"""Processes of tests, forked from one that has imported what they need.

A fresh interpreter takes seconds to import torch and transformers. A statement about a process that
is killed, interrupted, or one of several needs none: it is forked, with standard streams, signals
and a session of its own. What a fresh interpreter does is for subprocess.
"""

import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["spectra_pretrain.command", "spectra_pretrain.run", "spectra.scanning.scan", "tests.small"]
)


class Forked:
    """A function in a process of its own, as `subprocess.Popen` has a program.

    Its standard output is read from `stdout` while it runs, its standard error once it has ended.
    The function's result is the exit status, as that of a command's `main` is; none is 0.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        reader, writer = os.pipe()
        self.stdout = os.fdopen(reader)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        streams = [Connection(writer), Connection(os.dup(self._errors.fileno()))]
        self._process = CONTEXT.Process(
            target=_run,
            args=(function, arguments, dict(os.environ), streams),
            daemon=True,  # it ends with the tests
        )
        self._process.start()
        for stream in streams:
            stream.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or minus the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 120) -> int:
        self._process.join(timeout)
        assert self.returncode is not None, f"it has not ended after {timeout} seconds"
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it wrote to standard output, of at most a pipe's 64 kB, and error, once it ended."""
        self.wait(timeout)
        self._errors.seek(0)
        return self.stdout.read(), self._errors.read()


def signalled(
    number: int, files: int, mark: str, function: Callable[..., Any], *arguments: Any
) -> Any:
    """Call a function and send this process a signal at one of the files that it touches.

    Counted is what it opens, renames and removes after the first new name that `mark` is part of,
    so that no machine is too fast or too slow for the moment that is meant.
    """
    counts = None

    def count(event: str, details: tuple[Any, ...]) -> None:
        nonlocal counts
        if counts is None and event == "os.rename" and mark in os.fspath(details[1]):
            counts = itertools.count()
        if counts and event in ("open", "os.rename", "os.remove") and next(counts) == files:
            os.kill(os.getpid(), number)

    sys.addaudithook(count)
    return function(*arguments)


def _run(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    streams: list[Connection],
) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may ignore it
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.exit(function(*arguments))

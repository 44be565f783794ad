"""A command in a child process that never outlives this one."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from spectra.machine.interpreter import search_path
from spectra.machine.libc import with_parent
from spectra_data.errors import InputError

WRONG_INPUT = 2
"""Exit status of our commands for wrong input."""
PROGRAM = re.compile(r"^spectra \w+: ")
"""Prefix of our commands' messages."""


class FailedError(InputError):
    """A command failed although its input was right."""


def finished(command: Sequence[str], what: str) -> dict[str, Any]:
    """Run a command to its end; return the JSON object on its last line.

    Ctrl-C and SIGTERM are passed on as Ctrl-C, once each. Then this process waits until the command
    has saved its work.

    Raises
    ------
    FailedError
        When the command fails, with the last line that it wrote.
    InputError
        When the command reports wrong input.
    KeyboardInterrupt
        When the command was interrupted.
    """
    text = functools.partial(tempfile.TemporaryFile, "w+", encoding="utf-8", errors="replace")
    with text() as output, text() as errors:
        # in its own session, so that a terminal's Ctrl-C reaches it only through this process
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=errors,
            start_new_session=True,
            env=os.environ | search_path(),
            preexec_fn=with_parent(),  # safe after a fork: it calls one function of the system
        )
        with _interruptible():
            interrupted = _wait(child)
        if interrupted:
            raise KeyboardInterrupt
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().strip().splitlines())
    if child.returncode:
        kind = InputError if child.returncode == WRONG_INPUT else FailedError
        last = texts[1][-1] if texts[1] else _silent_end(child.returncode)
        raise kind(f"{what} failed: {PROGRAM.sub('', last)}")
    found: dict[str, Any] = json.loads(texts[0][-1])
    return found


def _silent_end(status: int) -> str:
    """Reason why a command ended without a message: if memory runs out, the system kills it."""
    killed = f"it was killed by {signal.Signals(-status).name}" if status < 0 else ""
    return killed or f"it printed nothing, and exited with {status}"


def _wait(child: subprocess.Popen[bytes]) -> bool:
    """Wait for a child; return whether it was interrupted."""
    interrupted = False
    while True:
        try:
            child.wait()
            return interrupted
        except KeyboardInterrupt:
            interrupted = True
            with contextlib.suppress(ValueError):  # on Windows the console interrupts it
                child.send_signal(signal.SIGINT)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C; in the main thread only, where signals arrive."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

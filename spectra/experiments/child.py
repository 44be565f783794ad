"""A command in a process of its own, which is never left behind."""

import contextlib
import json
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from spectra.machine.libc import with_parent
from spectra_data.errors import InputError

WRONG_INPUT = 2
"""The exit status of our commands that says so."""
PROGRAM = re.compile(r"^spectra \w+: ")
"""How our commands begin what they say."""


class FailedError(InputError):
    """A command that failed by itself: its input was right."""


def finished(command: Sequence[str], what: str) -> dict[str, Any]:
    """Run a command to its end; the JSON object that it prints last.

    Ctrl-C and SIGTERM are passed on as Ctrl-C, once each, and the command is waited for: it saves
    what it has.

    Raises
    ------
    FailedError
        When it fails, with the last line that it wrote.
    InputError
        When it says that its input is wrong.
    KeyboardInterrupt
        When it was interrupted.
    """
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as told:
        # in a session of its own, so that a terminal's Ctrl-C reaches it through this process alone
        child = subprocess.Popen(
            command,
            stdout=said,
            stderr=told,
            start_new_session=True,
            preexec_fn=with_parent(),  # it calls one function of the system
        )
        with _interruptible():
            interrupted = _wait(child)
        if interrupted:
            raise KeyboardInterrupt
        texts = []
        for file in (said, told):
            file.seek(0)
            texts.append(file.read().strip().splitlines())
    if child.returncode:
        kind = InputError if child.returncode == WRONG_INPUT else FailedError
        last = texts[1][-1] if texts[1] else _unsaid(child.returncode)
        raise kind(f"{what} failed: {PROGRAM.sub('', last)}")
    found: dict[str, Any] = json.loads(texts[0][-1])
    return found


def _unsaid(status: int) -> str:
    """Why a command ended that wrote nothing: where memory runs out, the system kills it."""
    killed = f"it was killed by {signal.Signals(-status).name}" if status < 0 else ""
    return killed or f"it printed nothing, and exited with {status}"


def _wait(child: subprocess.Popen[bytes]) -> bool:
    """Wait for a child; whether it was interrupted."""
    interrupted = False
    while True:
        try:
            child.wait()
            return interrupted
        except KeyboardInterrupt:
            interrupted = True
            child.send_signal(signal.SIGINT)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM as Ctrl-C; both where the main thread is, as signals are."""

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

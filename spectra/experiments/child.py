"""A command in a process of its own, which is never left behind."""

import contextlib
import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from data.errors import InputError


def finished(command: Sequence[str], what: str) -> dict[str, Any]:
    """Run a command to its end; the JSON object that it prints last.

    Ctrl-C and SIGTERM are passed on as Ctrl-C, once each, and the command is waited for: it saves
    what it has.

    Raises
    ------
    InputError
        When it fails, with the last line that it wrote.
    KeyboardInterrupt
        When it was interrupted.
    """
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as told:
        # in a session of its own, so that a terminal's Ctrl-C reaches it through this process alone
        child = subprocess.Popen(command, stdout=said, stderr=told, start_new_session=True)
        with _interruptible():
            interrupted = _wait(child)
        if interrupted:
            raise KeyboardInterrupt
        texts = []
        for file in (said, told):
            file.seek(0)
            texts.append(file.read().strip().splitlines())
    if child.returncode:
        raise InputError(f"{what} failed: {texts[1][-1] if texts[1] else 'it printed nothing'}")
    found: dict[str, Any] = json.loads(texts[0][-1])
    return found


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

"""Where a result goes that a user names by ``--out``: a file, a stream, a folder."""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from spectra.store.durable import write_file
from spectra_data.errors import InputError
from spectra_data.partial import remove_leftovers

STREAMS = (1, 2)
"""Descriptors of standard output and standard error."""


def write_result(path: str | Path, content: bytes) -> None:
    """Write a result, to a file whole or not at all.

    A link is followed, to a file that is there. A device such as ``/dev/stdout`` or ``/dev/null``,
    a pipe, and the file that standard output goes to are written to as they are.

    Raises
    ------
    InputError
        When it cannot be written, or something else is there: a folder, a broken link.
    """
    place = Path(path)
    try:
        if (descriptor := _descriptor_of(place)) is not None:
            _write_all(descriptor, content)
        elif is_stream(place):
            with _opened(place) as descriptor:
                _write_all(descriptor, content)
        else:
            _replace(place, content)
    except BrokenPipeError:  # whoever read our output has enough
        raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def is_stream(path: str | Path) -> bool:
    """Whether a device or a pipe is there, which has no name that tells a format."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


@contextlib.contextmanager
def messages_beside(path: str | Path | None) -> Iterator[None]:
    """Where a result goes to standard output, print what is not the result to standard error."""
    with contextlib.ExitStack() as redirected:
        if path is not None and _descriptor_of(Path(path)) == 1:
            redirected.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def require_no_broken_link(place: Path) -> None:
    """Require a place that is free or taken, not one that points nowhere."""
    if place.is_symlink() and not place.exists():
        raise InputError(f"{place} is a link to nothing: remove it, or choose another --out")


def make_folder(folder: Path) -> None:
    """Make a folder for results, if it is not there.

    Raises
    ------
    InputError
        When something else is there, or it cannot be made.
    """
    require_no_broken_link(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"{folder} is there and is no folder: name another") from error
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error


def _replace(place: Path, content: bytes) -> None:
    require_no_broken_link(place)
    target = Path(os.path.realpath(place))
    remove_leftovers(target.parent, target.name)
    write_file(target, content)


def _descriptor_of(place: Path) -> int | None:
    """Standard output or standard error, if that is what is there, under whatever name."""
    for descriptor in STREAMS:
        with contextlib.suppress(OSError):  # nothing there, or a closed descriptor
            same = os.path.samestat(place.stat(), os.fstat(descriptor))
            if same and not place.samefile(os.devnull):
                return descriptor
    return None


@contextlib.contextmanager
def _opened(stream: Path) -> Iterator[int]:
    try:
        descriptor = os.open(stream, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise InputError(f"nobody reads from the pipe {stream}: start its reader") from error
        raise
    try:
        os.set_blocking(descriptor, True)
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    for own in (sys.__stdout__, sys.__stderr__):  # what was printed before comes before
        if own is not None:
            own.flush()
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]

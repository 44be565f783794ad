"""Destination of a result that a user names with ``--out``: a file, a stream, a folder."""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from spectra.store.durable import require_file, write_file
from spectra_data.errors import InputError, printable
from spectra_data.partial import partial_file, remove_leftovers
from spectra_data.reading import require_utf8

STREAMS = (1, 2)
"""Descriptors of standard output and standard error."""


def write_result(path: str | Path, content: bytes) -> None:
    """Write a result; to a file, whole or not at all.

    A link to an existing file is followed. A device such as ``/dev/stdout`` or ``/dev/null``, a
    pipe, and the file that standard output goes to are written to directly.

    Raises
    ------
    InputError
        When it cannot be written, or something else is there: a folder, a broken link.
    """
    target = Path(path)
    try:
        if (descriptor := _descriptor_of(target)) is not None:
            _write_all(descriptor, content)
        elif is_stream(target):
            with _opened(target) as descriptor:
                _write_all(descriptor, content)
        else:
            _replace(target, content)
    except BrokenPipeError:  # the reader of our output is gone
        raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def is_stream(path: str | Path) -> bool:
    """Whether a path is a device or a pipe, whose name does not tell a format."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


@contextlib.contextmanager
def messages_beside(path: str | Path | None) -> Iterator[None]:
    """Print messages to standard error if the result goes to standard output."""
    with contextlib.ExitStack() as redirected:
        if path is not None and _descriptor_of(Path(path)) == 1:
            redirected.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def require_writable(path: str | Path, *, folder: bool = False) -> None:
    """Require that a result can be written, before the work that makes it.

    A file is made there and removed: permissions alone do not tell.

    Parameters
    ----------
    path
        File or stream of the result; it need not exist.
    folder
        Whether it is the folder of the result.

    Raises
    ------
    InputError
        When it cannot be written, or something else is there.
    """
    target = Path(path)
    if not folder and (is_stream(target) or _descriptor_of(target) is not None):
        return
    require_no_broken_link(target)
    try:
        target = Path(os.path.realpath(target))
        if not folder:
            require_file(target)
        elif target.exists():
            if not target.is_dir():
                raise InputError(f"{path} exists and is not a folder: name another")
            target = target / "result"
        while not target.parent.exists():
            target = target.parent
        with partial_file(target):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def require_no_broken_link(place: Path) -> None:
    """Require a path that is free or exists, and is not a link to nothing."""
    if place.is_symlink() and not place.exists():
        raise InputError(f"{place} is a link to nothing: remove it, or choose another --out")


def make_folder(folder: Path) -> None:
    """Make a folder for results, if it does not exist.

    Raises
    ------
    InputError
        When something else is there, its name is not UTF-8, or it cannot be made.
    """
    require_utf8(folder.absolute())
    require_writable(folder, folder=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error


def _replace(path: Path, content: bytes) -> None:
    require_no_broken_link(path)
    target = Path(os.path.realpath(path))
    remove_leftovers(target.parent, target.name)
    write_file(target, content)


def _descriptor_of(path: Path) -> int | None:
    """Descriptor of standard output or standard error, if a path leads there under any name."""
    for descriptor in STREAMS:
        with contextlib.suppress(OSError):  # nothing there, or a closed descriptor
            same = os.path.samestat(path.stat(), os.fstat(descriptor))
            if same and not path.samefile(os.devnull):
                return descriptor
    return None


@contextlib.contextmanager
def _opened(stream: Path) -> Iterator[int]:
    try:
        descriptor = os.open(stream, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise InputError(f"nobody reads from the pipe {stream}: start its reader") from error
        raise
    try:
        if os.name != "nt":
            os.set_blocking(descriptor, True)
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    for own in (sys.__stdout__, sys.__stderr__):  # keep the order with what was printed before
        if own is not None:
            own.flush()
    if os.isatty(descriptor):  # names in tables must not be obeyed
        content = printable(content.decode(errors="backslashreplace")).encode()
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]

"""Files that others wrote: anything wrong with one is reported in one line that names it."""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spectra_data.errors import InputError, first_line

OPEN_ALREADY = ("/dev/fd/", "/dev/stdin", "/proc/")
"""Beginnings of paths through which a shell passes another process's output: ``<(…)``."""


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Name the file that could not be read.

    Raises
    ------
    InputError
        For any error of the file system, the network, a parser or the hub's library.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # every library has its own
        raise InputError(f"cannot read {name}: {_reason(error)}") from error


def require_file(path: str | Path) -> None:
    """Require a file that can be read to its end: no folder, device or pipe without a writer.

    Raises
    ------
    InputError
        When it is not such a file, or missing.
    """
    if str(path).startswith(OPEN_ALREADY):
        return
    with reading(str(path)):
        mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise InputError(f"cannot read {path}: it is {kind}, not a file")


def require_utf8(path: str | Path) -> None:
    """Require a path that libraries in Rust can open: safetensors' and tokenizers'.

    Raises
    ------
    InputError
        When it is not UTF-8, as an old archive's names are, or any beyond ASCII in such a locale.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{path} is not UTF-8, which safetensors and tokenizers need: rename it, "
            "or set a UTF-8 locale (LC_ALL=C.UTF-8)"
        ) from error


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises
    ------
    InputError
        When it cannot be read, or is not text.
    """
    require_file(path)
    with reading(str(path)):
        return Path(path).read_text(encoding="utf-8-sig")


def read_json(path: str | Path, *, finite: bool = False) -> Any:
    """Content of a JSON file; see `parse_json`.

    Raises
    ------
    InputError
        When it cannot be read, or is not JSON.
    """
    return parse_json(read_text(path), str(path), finite=finite)


def parse_json(text: str | bytes, name: str, *, finite: bool = False) -> Any:
    """Content of a JSON text.

    Parameters
    ----------
    text
        The text, or its bytes in UTF-8.
    name
        Name of the text in messages.
    finite
        Whether to refuse NaN and Infinity, which Python writes although JSON has no word for them.

    Raises
    ------
    InputError
        When it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refused if finite else None)
    except RecursionError as error:
        raise InputError(f"{name} is not usable JSON: it is nested too deeply") from error
    except ValueError as error:
        raise InputError(f"{name} is not JSON: {first_line(error)}") from error


def _refused(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is not a number")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"it is not text in UTF-8 (byte {error.start})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return first_line(error)

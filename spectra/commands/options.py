"""Reading a command line into a dataclass."""

import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from spectra_data.errors import InputError
from spectra_data.streams import behind

Options = TypeVar("Options")

_BOX = re.compile(r"[╭╮╰╯│─]+")


def program_name() -> str:
    """The command to type for this `spectra`: its name if that finds it, else its path."""
    path = Path(sys.executable).with_name("spectra")
    found = shutil.which("spectra")
    if found is None and path.exists():
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    return "spectra"


def parse(
    options: type[Options],
    arguments: Sequence[str],
    *,
    command: str,
    description: str | None,
    default: Options | None = None,
    others: bool = False,
    pairs: bool = False,
) -> Options:
    """Read options from a command line.

    Parameters
    ----------
    options
        A dataclass; nested dataclasses become groups in the help, without prefixes.
    arguments
        Arguments after the command.
    command
        The command's name.
    description
        The text of its help.
    default
        Values of the options that are not given; the dataclass's own if this is None.
    others
        Ignore arguments that the dataclass does not have.
    pairs
        Accept any switch as ``--switch`` and as ``--no-switch``; else only the one that changes the
        default.

    Raises
    ------
    InputError
        When the arguments do not fit, in one line.
    """
    errors = io.StringIO()
    markers = (tyro.conf.OmitArgPrefixes, *(() if pairs else (tyro.conf.FlagCreatePairsOff,)))
    try:
        # the help has tyro's colours
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(behind(sys.stdout)):
            given: dict[str, Any] = {} if default is None else {"default": default}
            if others:
                given["return_unknown_args"] = True
            parsed: Any = tyro.cli(
                options,
                args=list(arguments),
                prog=f"spectra {command}",
                description=description,
                config=markers,
                **given,
            )
            result: Options = parsed[0] if others else parsed
            return result
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        reason = _one_line(errors.getvalue())
        raise InputError(f"{reason} (see `spectra {command} --help`)") from None


def unknown_options(arguments: Sequence[str], reason: str) -> list[str]:
    """The options among `arguments` that `reason`, the message of `parse`, calls unrecognized."""
    if "nrecognized" not in reason:
        return []
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    unknown = {word.partition("=")[0] for word in reason.replace(",", " ").split()}
    return sorted(given & unknown)


def _one_line(box: str) -> str:
    """The first paragraph inside tyro's box, without the box and its title."""
    lines = [_BOX.sub(" ", line).strip() for line in box.splitlines()[1:]]
    paragraph: list[str] = []
    for line in lines:
        if not line and paragraph:
            break
        paragraph.append(line)
    return " ".join(" ".join(paragraph).split()).rstrip(".") or "the options do not fit"

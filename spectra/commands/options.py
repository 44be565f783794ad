"""Reading a command line into a dataclass."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import tyro

from spectra.keywords import SHARE, hints_of, names_of, share_of
from spectra_data.errors import InputError
from spectra_data.streams import behind

Options = TypeVar("Options")

_BOX = re.compile(r"[╭╮╰╯│─]+|^ *-{9,} *$")
"""Borders of tyro's messages, which are dashes where the locale is ASCII."""


class UnknownOptionsError(InputError):
    """Options that a command does not have."""

    def __init__(self, message: str, options: Sequence[str]) -> None:
        super().__init__(message)
        self.options = tuple(options)
        """Options as typed, with their dashes."""


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
    UnknownOptionsError
        When there is no such option.
    InputError
        When the arguments do not fit otherwise; both in one line.
    """
    more = f" (see `spectra {command} --help`)"
    known = dict(_options_of(options, default))
    if not others:
        _require_known(known, arguments, more)
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
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        reason = _one_line(errors.getvalue())
        said = _misfit(reason, known, arguments) or _missing(reason) or reason
        raise InputError(f"{said}{more}") from None
    _require_paths(result, arguments)
    return result


def _options_of(kind: type[Any], default: Any) -> Iterator[tuple[str, Any]]:
    """Options of a dataclass and of those that it nests, as typed, with their types."""
    names, hints = names_of(kind), hints_of(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if dataclasses.is_dataclass(plain):
            given = getattr(default, field.name, None)
            yield from _options_of(plain if given is None else type(given), given)  # type: ignore[arg-type]
        elif tyro.conf.Positional not in get_args(hint):
            yield f"--{names[field.name].replace('_', '-')}", hint
            for note in get_args(hint)[1:]:
                yield from ((alias, hint) for alias in getattr(note, "aliases", None) or ())


def _require_known(known: dict[str, Any], arguments: Sequence[str], more: str) -> None:
    """Require that no option is misspelt, or another command's.

    Raises
    ------
    UnknownOptionsError
        With the option that may be meant.
    """
    switches = [f"--no-{name[2:]}" for name, hint in known.items() if hint is bool]
    every = [*known, *switches, "--help", "-h"]
    typed = [word.partition("=")[0] for word in arguments if re.match("--?[a-zA-Z]", word)]
    unknown = [word for word in typed if word.replace("_", "-") not in every]
    if not unknown:
        return
    names = {name.lstrip("-"): name for name in every}
    close = difflib.get_close_matches(unknown[0].lstrip("-").replace("_", "-"), names, n=1)
    hint = f"; did you mean {names[close[0]]}?" if close else ""
    raise UnknownOptionsError(f"there is no option {unknown[0]}{hint}{more}", unknown)


def _misfit(reason: str, known: Mapping[str, Any], arguments: Sequence[str]) -> str | None:
    """What an option's value must be, where tyro's reason names the option; None if unknown."""
    named = re.match(r"(?:Error parsing|invalid choice .*? for argument) '?(--[\w-]+)", reason)
    if named is None or (wanted := _wanted(known.get(named[1]))) is None:
        return None
    read, description = wanted
    for word in _values_of(named[1], arguments):
        try:
            read(word)
        except ValueError:
            return f"{named[1]} is {description}, not {word!r}"
    return None


def _missing(reason: str) -> str | None:
    """The first that is missing, where tyro's reason is lines of the help; None if it is not."""
    line = r"(?:(--[\w-]+) )?(?:\{\S+\}|[A-Z]+) (.+?)\.? \(required\)"
    found = re.match(f"Missing from [^:]+: {line}", reason)
    if found is None:
        return None
    option, text = found[1] or "an argument", found[2]
    return f"{option} is missing: {text[0].lower()}{text[1:]}"


def _wanted(hint: Any) -> tuple[Callable[[str], Any], str] | None:
    """How values of a type are read, which may raise ValueError, and what they are."""
    if hint is int:
        return int, "a whole number"
    if hint is float:
        return float, "a number"
    parts = get_args(hint)
    if SHARE in parts:
        return share_of, "a share, e.g. 0.5 or 50%"
    if get_origin(hint) is Literal:
        return parts.index, f"one of {', '.join(map(str, parts))}"
    factories = (getattr(part, "constructor_factory", None) for part in parts)
    made = [factory() for factory in factories if factory is not None]
    inner = (*made, *(parts[:1] if get_origin(hint) is Annotated else parts))
    return next((found for part in inner if (found := _wanted(part)) is not None), None)


def _values_of(option: str, arguments: Sequence[str]) -> Iterator[str]:
    """The words after an option, as far as the next one."""
    after = False
    for word in arguments:
        name, given, value = word.partition("=")
        if word.startswith("--"):
            after = name.replace("_", "-") == option
            if after and given:
                yield value
        elif after:
            yield word


def _require_paths(options: Any, arguments: Sequence[str]) -> None:
    """Require that paths are no addresses, from which they would make folders like ``s3:``.

    Raises
    ------
    InputError
        With the first that is.
    """
    paths = {str(path) for path in _paths_of(options)}
    for word in arguments:
        value = word.partition("=")[2] if word.startswith("--") else word
        if "://" in value and str(Path(value)) in paths:
            raise InputError(f"{value} is an address: name a path on this machine here")


def _paths_of(options: Any) -> Iterator[Path]:
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, Path):
            yield value
        elif dataclasses.is_dataclass(value):
            yield from _paths_of(value)


def _one_line(box: str) -> str:
    """The first paragraph inside tyro's box, without the box and its title."""
    lines = [_BOX.sub(" ", line).strip() for line in box.splitlines()[1:]]
    paragraph: list[str] = []
    for line in lines:
        if not line and paragraph:
            break
        paragraph.append(line)
    return " ".join(" ".join(paragraph).split()).rstrip(".") or "the options do not fit"

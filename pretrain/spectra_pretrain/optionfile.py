"""Options as a flat JSON file: written by a run, read to repeat or resume it."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from spectra_data.errors import InputError
from spectra_pretrain.options import RunOptions
from spectra_pretrain.ways import owner_of, settings_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAY_CHANGE = {"machine", "checkpoints", "place"}
"""Groups whose options may differ when a run is resumed: they do not decide what it computes."""

Options = TypeVar("Options", bound="DataclassInstance")
Run = TypeVar("Run", bound=RunOptions)


def to_dict(options: RunOptions) -> dict[str, Any]:
    """Options as one flat dictionary, by the names they have on the command line."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        flat |= _fields(f.name, value)
    return flat


def from_dict(flat: dict[str, Any], source: str, kind: type[Run]) -> Run:
    """Options of a kind from `to_dict`'s dictionary; those that it lacks keep their defaults.

    Raises
    ------
    InputError
        Naming `source`, when a name is unknown or a value is not of its option's type.
    """
    remaining = dict(flat)
    built = _build(kind, remaining, source)
    for name in sorted(remaining):
        if (owner := owner_of(name)) is not None:
            option = name.replace("_", "-")
            raise InputError(f"{source}: --{option} goes with {owner}: leave it out")
    if remaining:
        raise InputError(f"{source} has unknown options: {', '.join(sorted(remaining))}")
    return built


def read_options(path: Path, kind: type[Run]) -> Run:
    """Options from a file that a run wrote (e.g. pretrain.json in its folder)."""
    try:
        flat = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(flat, dict):
        raise InputError(f"{path} is no file of options: it holds no JSON object")
    return from_dict(flat, str(path), kind)


def differences(one: RunOptions, other: RunOptions) -> list[str]:
    """Options that must not change on resuming and do, as ``--steps 300 (was 200)``."""
    changed = []
    for f in dataclasses.fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if f.name in MAY_CHANGE or a == b:
            continue
        old, new = _fields(f.name, a), _fields(f.name, b)
        changed += [
            f"--{name.replace('_', '-')} {new[name]} (was {old[name]})"
            for name in old
            if old[name] != new[name]
        ]
    return changed


def _fields(name: str, value: Any) -> dict[str, Any]:
    """The options of a group, or the one option that is none."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return {name: value}


def _build(kind: type[Options], remaining: dict[str, Any], source: str) -> Options:
    """Options of a kind; what is not given is as its default has it, groups of options included."""
    values: dict[str, Any] = {}
    own = settings_of(remaining.get("optimizer"), remaining.get("train"))
    for f in dataclasses.fields(kind):
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            if f.name in own:
                values[f.name] = _build(own[f.name], remaining, source)
            else:
                given = _given(f.type, remaining, source)
                usual: Any = f.default_factory  # every group has one
                values[f.name] = dataclasses.replace(usual(), **given)
    return kind(**values, **_given(kind, remaining, source))


def _given(kind: type[Any], remaining: dict[str, Any], source: str) -> dict[str, Any]:
    """The options of a dataclass, without its groups, that are there."""
    return {
        f.name: _typed(f.name, remaining.pop(f.name), f.type, source)
        for f in dataclasses.fields(kind)
        if f.name in remaining
        and not (isinstance(f.type, type) and dataclasses.is_dataclass(f.type))
    }


def _typed(name: str, value: Any, kind: Any, source: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    fits = any(type(value) is a if isinstance(a, type) else value == a for a in _members(kind))
    if not fits:
        raise InputError(f"{source}: {name} cannot be {value!r}")
    return value


def _members(kind: Any) -> list[Any]:
    """Of a union or a Literal, its members, and theirs."""
    inner = get_args(kind)
    return [member for one in inner for member in _members(one)] if inner else [kind]

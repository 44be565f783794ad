"""Options as a flat JSON file: written by a run, read to repeat or resume it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from spectra.keywords import names_of, typed
from spectra_data.errors import InputError
from spectra_data.fields import fault
from spectra_data.reading import read_json
from spectra_data.tokenizer import TRAIN
from spectra_pretrain.options import AUTO, OWN, RunOptions
from spectra_pretrain.ways import owner_of, settings_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

GROUPS_THAT_MAY_CHANGE = {"machine", "checkpoints"}
"""Groups whose options may differ when a run is resumed: they do not decide what it computes."""
MAY_CHANGE = {"record_background", "record_queue", "record_strict"}
"""Options of other groups that may differ, too."""

Options = TypeVar("Options", bound="DataclassInstance")
Run = TypeVar("Run", bound=RunOptions)


def to_dict(options: RunOptions) -> dict[str, Any]:
    """Options as one flat dictionary, by their names on the command line."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(options):
        flat |= _fields(f.name, getattr(options, f.name))
    return flat


def from_dict(flat: dict[str, Any], source: str, kind: type[Run]) -> Run:
    """Options of a kind from the dictionary of `to_dict`; missing ones keep their defaults.

    Raises
    ------
    InputError
        When a name is unknown or a value has the wrong type; the message names `source`.
    """
    remaining = _renamed(flat)
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
    flat = read_json(path)
    if not isinstance(flat, dict):
        raise InputError(f"{path} is not a file of options: it holds no JSON object")
    return from_dict(flat, str(path), kind)


def differences(one: RunOptions, other: RunOptions) -> list[str]:
    """Options that must not change on resuming but did, e.g. ``--steps 300 (was 200)``."""
    changed = []
    for f in dataclasses.fields(one):
        if f.name in GROUPS_THAT_MAY_CHANGE:
            continue
        old, new = (_fields(f.name, getattr(options, f.name)) for options in (one, other))
        changed += [
            f"--{name.replace('_', '-')} {new[name]} (was {old[name]})"
            for name in old
            if old[name] != new[name] and name not in MAY_CHANGE
        ]
    return changed


def _renamed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their current names, from a file that an earlier version may have written."""
    found = dict(flat)
    if (steps := found.pop("record_at", None)) is not None:
        found["record_every"] = steps
    if found.get("vocab_size", AUTO) is None:  # that of the model, or of a loaded tokenizer
        found["vocab_size"] = OWN if found.get("tokenizer", TRAIN) == TRAIN else AUTO
    return found


def _fields(name: str, value: Any) -> dict[str, Any]:
    """The options of a group, or a single option; lists as on the command line."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {name: value}
    held = {name: getattr(value, field) for field, name in names_of(type(value)).items()}
    return {name: typed(v) if isinstance(v, tuple) else v for name, v in held.items()}


def _build(kind: type[Options], remaining: dict[str, Any], source: str) -> Options:
    """Options of a kind; those that are not given keep their defaults, in groups, too."""
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
    """The given options of a dataclass, without its groups."""
    names = names_of(kind)
    return {
        f.name: _typed(names[f.name], remaining.pop(names[f.name]), f.type, source)
        for f in dataclasses.fields(kind)
        if names[f.name] in remaining
        and not (isinstance(f.type, type) and dataclasses.is_dataclass(f.type))
    }


def _typed(name: str, value: Any, kind: Any, source: str) -> Any:
    if fault(name, value, kind) is not None:
        raise InputError(f"{source}: {name} cannot be {value!r}")
    return msgspec.convert(value, kind)

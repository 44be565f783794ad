"""Types of what is read from JSON: checked by msgspec, said in words of ours."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from spectra_data.errors import InputError

Kind = TypeVar("Kind")


def fault(name: str, value: Any, kind: Any) -> str | None:
    """What is wrong with a value of a type, beginning with its name; None where nothing is.

    >>> fault("rank", 1.5, int)
    'rank: expected `int`, got `float`'
    >>> fault("ranks", [1, "2"], list[int])
    'ranks[1]: expected `int`, got `str`'
    """
    try:
        msgspec.convert(msgspec.to_builtins(value), kind)
    except msgspec.ValidationError as error:
        return _phrase(name, error)
    except TypeError as error:  # of what JSON cannot hold
        return f"{name}: {error}"
    return None


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON gives it back: dictionaries, lists, numbers and strings."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return found


def converted(name: str, fields: Mapping[str, Any], kind: type[Kind]) -> Kind:
    """A dataclass from what JSON holds of it.

    Raises
    ------
    InputError
        When a field is missing or not of its type; or as the dataclass does.
    """
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(_phrase(name, error)) from error


def _phrase(name: str, error: Exception) -> str:
    said, _, path = str(error).partition(" - at `$")
    return f"{name}{path.rstrip('`')}: {said[:1].lower()}{said[1:]}"

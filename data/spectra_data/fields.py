"""Types of values read from JSON: msgspec checks them, the messages are ours."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from spectra_data.errors import InputError

Kind = TypeVar("Kind")


def fault(name: str, value: Any, kind: Any) -> str | None:
    """Why a value is not of a type, in a message that begins with its name; None if it is.

    >>> fault("rank", 1.5, int)
    'rank: expected `int`, got `float`'
    >>> fault("ranks", [1, "2"], list[int])
    'ranks[1]: expected `int`, got `str`'
    """
    try:
        msgspec.convert(msgspec.to_builtins(value), kind)
    except msgspec.ValidationError as error:
        return _phrase(name, error)
    except TypeError as error:  # a value that JSON cannot hold
        return f"{name}: {error}"
    return None


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON returns it: dictionaries, lists, numbers and strings."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return found


def converted(name: str, fields: Mapping[str, Any], kind: type[Kind]) -> Kind:
    """A dataclass from its fields in JSON.

    Raises
    ------
    InputError
        When a field is missing or has the wrong type, or the dataclass refuses its value.
    """
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(_phrase(name, error)) from error


def _phrase(name: str, error: Exception) -> str:
    message, _, path = str(error).partition(" - at `$")
    return f"{name}{path.rstrip('`')}: {message[:1].lower()}{message[1:]}"

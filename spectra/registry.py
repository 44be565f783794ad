"""Descriptions that are chosen by name: one line about each, and where it is defined.

An entry's module is imported only when the entry is chosen, so that listing all of them is free.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from spectra_data.errors import InputError

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Entry:
    """A line of a registry."""

    summary: str
    """Summary, without a full stop."""
    place: str
    """Import path of its description, ``package.module:NAME``."""


class Registry(Generic[Kind]):
    """Descriptions by name.

    Parameters
    ----------
    noun
        Noun for one of them, e.g. ``optimizer``.
    entries
        Entries by name, in the order of listing.

    Examples
    --------
    >>> registry = Registry("codec", {"json": Entry("text", "json:JSONDecoder")})
    >>> list(registry), registry["json"].__name__
    (['json'], 'JSONDecoder')
    """

    def __init__(self, noun: str, entries: Mapping[str, Entry]) -> None:
        self.noun = noun
        self.entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> Kind:
        """The description of that name.

        Raises
        ------
        InputError
            When no entry has that name.
        """
        if name not in self.entries:
            raise InputError(f"no {self.noun} {name!r}; there are: {', '.join(self)}")
        module, _, attribute = self.entries[name].place.partition(":")
        found: Any = getattr(import_module(module), attribute)
        kind: Kind = found
        return kind

    def help(self, names: Iterable[str] | None = None) -> str:
        """Names with their summaries, for an option's help; all of them by default."""
        listed = self if names is None else names
        return "; ".join(f"{name}: {self.entries[name].summary}" for name in listed)

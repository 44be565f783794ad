"""The state of a page, as one value that goes to the address and back.

The browser writes addresses too (assets/address.js): fields have the same names, a list repeats its
name, and missing fields have their defaults.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Self, get_args, get_origin
from urllib.parse import parse_qs, urlencode

from spectra.allocation.methods.registry import DEFAULT, offered
from spectra.allocation.target import TARGETS
from spectra.quantities import QUANTITIES
from spectra.storages.registry import DEFAULT_STORAGE, STORAGES
from spectra_dashboard.registry import FIRST, PAGES

MISSING = "missing"
"""Page of an address that leads to no page."""
CHOICES: dict[str, Iterable[str]] = {
    "page": PAGES,
    "kind": QUANTITIES,
    "scale": ("linear", "log"),
    "norm": ("raw", "first"),
    "cosine": ("sketch", "exact"),
    "target": TARGETS,
    "storage": STORAGES,
}
"""Fields with few values; any other value falls back to the default."""


def choices(field: str) -> tuple[str, ...] | None:
    """Values of a field that has few, else None; methods are those that need only spectra."""
    if field == "method":
        return offered()
    return tuple(CHOICES[field]) if field in CHOICES else None


@dataclass(frozen=True)
class View:
    """State of a page."""

    page: str = FIRST
    run: str = ""
    """Name of a store."""
    other: str = ""
    """Name of the store that it is compared with."""
    step: int | None = None
    """Step of a snapshot; None for the last."""
    other_step: int | None = None
    matrix: tuple[str, ...] = ()
    """Names of matrices; if empty, the page's own choice."""
    kind: str = "weight"
    measure: str = "stable_rank"
    scale: str = "linear"
    norm: str = "raw"
    cosine: str = "sketch"
    method: str = DEFAULT
    beside: str = ""
    """A second method, or ``map:`` and the name of a map."""
    storage: str = DEFAULT_STORAGE
    target: str = "err"
    value: float = 0.5
    """Value of the target."""

    @classmethod
    def from_address(cls, pathname: str | None, search: str | None) -> Self:
        """A view from an address; invalid fields have their defaults."""
        page = (pathname or "").strip("/") or FIRST
        given: dict[str, Any] = {"page": page if page in PAGES else MISSING}
        try:
            query = parse_qs((search or "").removeprefix("?"), max_num_fields=200)
        except ValueError:  # no page has so many fields
            query = {}
        for field in fields(cls):
            if field.name in query and field.name != "page":
                value = _read(field.type, query[field.name])
                known = choices(field.name)
                if value is not None and (known is None or value in known):
                    given[field.name] = value
        return cls(**given)

    def address(self) -> str:
        """Address of this view, from the first slash on."""
        query = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "page" or value == field.default:
                continue
            values = value if isinstance(value, tuple) else (value,)
            query += [(field.name, v) for v in values]
        path = "/" if self.page == FIRST else f"/{self.page}"
        return path + (f"?{urlencode(query)}" if query else "")


def _read(kind: Any, texts: list[str]) -> Any:
    """Value of a field's type from its texts; None if they are invalid."""
    if get_origin(kind) is tuple:
        return tuple(texts)
    try:
        if kind is float:
            value = float(texts[0])
            return value if 0 <= value <= 1 else None
        if kind is str:
            return texts[0]
        return int(texts[0]) if int in get_args(kind) else None
    except ValueError:
        return None

"""What a page shows, as one value that goes to the address and back.

The browser writes addresses, too (assets/address.js): a field is named as here, a list repeats
its name, and what is left out has its default.
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
"""The page of an address that leads to none."""
CHOICES: dict[str, Iterable[str]] = {
    "page": PAGES,
    "kind": QUANTITIES,
    "scale": ("linear", "log"),
    "norm": ("raw", "first"),
    "cosine": ("sketch", "exact"),
    "target": TARGETS,
    "storage": STORAGES,
}
"""Fields that have few values; others fall back to the default."""


def choices(field: str) -> tuple[str, ...] | None:
    """The values of a field that has few; methods are those that need nothing but spectra."""
    if field == "method":
        return offered()
    return tuple(CHOICES[field]) if field in CHOICES else None


@dataclass(frozen=True)
class View:
    """What a page shows."""

    page: str = FIRST
    run: str = ""
    """A store's name."""
    other: str = ""
    """The store that it is compared with."""
    step: int | None = None
    """A snapshot; the last where none is named."""
    other_step: int | None = None
    matrix: tuple[str, ...] = ()
    """Names of matrices; the page's own choice where there are none."""
    kind: str = "weight"
    measure: str = "stable_rank"
    scale: str = "linear"
    norm: str = "raw"
    cosine: str = "sketch"
    method: str = DEFAULT
    beside: str = ""
    """A second method, or ``map:`` and a map's name."""
    storage: str = DEFAULT_STORAGE
    target: str = "err"
    value: float = 0.5
    """Of the target."""

    @classmethod
    def from_address(cls, pathname: str | None, search: str | None) -> Self:
        """A view from an address; what makes no sense there has its default."""
        page = (pathname or "").strip("/") or FIRST
        given: dict[str, Any] = {"page": page if page in PAGES else MISSING}
        asked = parse_qs((search or "").removeprefix("?"), max_num_fields=200)
        for field in fields(cls):
            if field.name in asked and field.name != "page":
                value = _read(field.type, asked[field.name])
                known = choices(field.name)
                if value is not None and (known is None or value in known):
                    given[field.name] = value
        return cls(**given)

    def address(self) -> str:
        """The address of this view, from the first slash on."""
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
    """A value of a field's type from its texts; None where it is none."""
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

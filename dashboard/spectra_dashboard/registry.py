"""The pages, in the order of the navigation: each is a file of this folder and a line here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spectra.registry import Entry, Registry

if TYPE_CHECKING:
    from dash import Dash

    from spectra_dashboard.access.library import Library
    from spectra_dashboard.view import View


def always_same(view: "View") -> list[str]:
    """The key of a page that is laid out once."""
    return []


def follows_nothing(view: "View") -> bool:
    """Of a page that is not laid out anew for a snapshot."""
    return False


@dataclass(frozen=True)
class Page:
    """A page; its name in the registry is its address.

    A new page is a module with a `Page` in it: copy `path.py`.
    """

    title: str
    """In the navigation and above the page."""
    layout: "Callable[[Library, View], Any]"
    """What is shown of a view."""
    register: "Callable[[Dash, Library], None]"
    """Adds the page's callbacks; called once."""
    key: "Callable[[View], Sequence[str]]" = always_same
    """What of the view it is laid out by: where that changes, it is laid out anew."""
    follows: "Callable[[View], bool]" = follows_nothing
    """Whether it is laid out anew for every snapshot that is taken while it is shown."""
    needs: int = 1
    """Runs that it shows: one, two that it compares, or none where it is of the folder."""
    made_for: str = "run"
    """The kind of store, ``run`` or ``scan``, whose name in the table of runs may lead to it."""


PAGES: Registry[Page] = Registry(
    "page",
    {
        "runs": Entry(
            "every store and rank map below the folder, and how far each is",
            "spectra_dashboard.pages.runs:PAGE",
        ),
        "dynamics": Entry(
            "how gradients turn and spectra move while a model is trained",
            "spectra_dashboard.pages.dynamics:PAGE",
        ),
        "tails": Entry(
            "heavy tails, ranks and random-matrix bulk of every spectrum",
            "spectra_dashboard.pages.tails:PAGE",
        ),
        "ranks": Entry(
            "which rank every matrix is given, and what that costs and saves",
            "spectra_dashboard.pages.ranks:PAGE",
        ),
        "path": Entry(
            "what compression saves and costs at every effective rank reduction: predicted from "
            "the spectra, and measured where checkpoints were evaluated",
            "spectra_dashboard.pages.path:PAGE",
        ),
        "compare": Entry(
            "the second minus the first, of two runs or of two snapshots of one",
            "spectra_dashboard.pages.compare:PAGE",
        ),
    },
)
FIRST = next(iter(PAGES))
"""The page of the plain address."""


def runs_needed(name: str) -> int:
    """Runs that the page of an address shows; none where there is no such page."""
    return PAGES[name].needs if name in PAGES else 0


def opening(kind: str) -> str:
    """The page that a store of some kind is opened on: the first that is made for it."""
    of_one = [name for name in PAGES if PAGES[name].needs == 1]
    return next((name for name in of_one if PAGES[name].made_for == kind), of_one[0])

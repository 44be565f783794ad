"""The pages, in the order of the navigation: each is a file in `pages` and a line here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spectra.registry import Entry, Registry

if TYPE_CHECKING:
    from dash import Dash

    from spectra_dashboard.access.library import Library
    from spectra_dashboard.view import View


def always_same(view: "View") -> list[str]:
    """Key of a page that is laid out once."""
    return []


def follows_nothing(view: "View") -> bool:
    """Whether a page is laid out anew for a new snapshot: never."""
    return False


@dataclass(frozen=True)
class Page:
    """A page; its name in the registry is its address.

    A new page is a module with a `Page` in it: copy `path.py`.
    """

    title: str
    """Title in the navigation and above the page."""
    layout: "Callable[[Library, View], Any]"
    """Function that lays out the page for a view."""
    register: "Callable[[Dash, Library], None]"
    """Function that adds the page's callbacks; called once."""
    key: "Callable[[View], Sequence[str]]" = always_same
    """Values of the view that the layout depends on; if they change, the page is laid out anew."""
    follows: "Callable[[View], bool]" = follows_nothing
    """Whether the page is laid out anew for every new snapshot while it is shown."""
    needs: int = 1
    """Number of runs that the page shows: one, two to compare, or none for the whole folder."""
    made_for: str = "run"
    """Kind of store, ``run`` or ``scan``, whose name in the table of runs may open the page."""


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
            "the rank of every matrix, and what that costs and saves",
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
"""Page of the plain address."""


def runs_needed(name: str) -> int:
    """Number of runs that a page shows; 0 if there is no such page."""
    return PAGES[name].needs if name in PAGES else 0


def opening(kind: str) -> str:
    """Page that opens a store of a kind: the first made for it."""
    of_one = [name for name in PAGES if PAGES[name].needs == 1]
    return next((name for name in of_one if PAGES[name].made_for == kind), of_one[0])

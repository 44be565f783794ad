"""A page is one file and one line in the registry."""

import pytest
from dash import html

from spectra.registry import Entry
from spectra_dashboard import components
from spectra_dashboard.access.library import Library
from spectra_dashboard.app import make_app
from spectra_dashboard.registry import PAGES, Page, opening
from spectra_dashboard.view import View
from tests.dashboard.served import serving

REGISTERED = []
MINE = Page(
    "Mine",
    layout=lambda library, view: html.Div(
        [*components.head(library, view, "mine"), components.defaults()]
    ),
    register=lambda app, library: REGISTERED.append(app),
    key=lambda view: [view.run],
)


@pytest.fixture
def mine(monkeypatch):
    """Registers the page by its line."""
    line = Entry("what a test shows", f"{__name__}:MINE")
    monkeypatch.setitem(PAGES.entries, "mine", line)


def navigation(library):
    links = make_app(library).layout._traverse()
    return [link.children for link in links if "nav" in (getattr(link, "id", None) or {})]


def test_a_page_that_is_registered_has_an_address_and_a_place_in_the_navigation(folder, mine):
    library = Library(folder)
    assert navigation(library) == ["Runs", "Dynamics", "Tails", "Ranks", "Path", "Compare", "Mine"]
    assert REGISTERED.pop().title == "spectra"
    view = View.from_address("/mine", "?run=scan.zarr")
    assert view == View(page="mine", run="scan.zarr")
    assert view.address() == "/mine?run=scan.zarr"


@pytest.mark.browser
def test_a_page_that_is_registered_is_shown_at_its_address(page, folder, mine):
    with serving(folder) as address:
        page.goto(f"{address}/ranks?run=scan.zarr")
        page.get_by_role("heading", name="Ranks", level=1).wait_for()
        page.get_by_role("link", name="Mine", exact=True).click()
        page.wait_for_url("**/mine?run=scan.zarr")
        page.get_by_role("heading", name="Mine", level=1).wait_for()
        assert page.locator("p.lead").inner_text() == "What a test shows."
        page.locator("#status").filter(has_text="1 snapshot").wait_for()
        assert page.locator("a.nav.here").all_inner_texts() == ["Mine"]
        page.goto(f"{address}/mine?run=broken.zarr")
        page.get_by_role("heading", name="Mine", level=1).wait_for()


def test_every_page_says_what_it_shows_and_which_stores_open_it():
    assert all(PAGES.entries[name].summary for name in PAGES)
    assert (opening("run"), opening("scan"), opening("of nobody")) == (
        "dynamics",
        "ranks",
        "dynamics",
    )

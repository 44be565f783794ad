"""What a page shows, to the address and back."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectra.registry import Entry
from spectra.storages.registry import STORAGES
from spectra_dashboard.access.library import Library
from spectra_dashboard.pages import path, ranks
from spectra_dashboard.registry import PAGES
from spectra_dashboard.view import CHOICES, View, choices

TEXTS = st.text(max_size=12)
FREE = {
    "run": TEXTS,
    "other": TEXTS,
    "step": st.none() | st.integers(0, 10**9),
    "other_step": st.none() | st.integers(0, 10**9),
    "matrix": st.lists(TEXTS.filter(bool), max_size=3).map(tuple),
    "measure": TEXTS.filter(bool),
    "beside": TEXTS,
    "value": st.floats(0, 1),
}
FEW = {name: st.sampled_from(choices(name)) for name in (*CHOICES, "method")}


@given(st.fixed_dictionaries(FREE | FEW))
def test_a_view_is_the_same_after_a_way_through_the_address(values):
    view = View(**values)
    assert View.from_address(*[*view.address().split("?", 1), ""][:2]) == view


@given(st.sampled_from(list(PAGES)), TEXTS)
def test_any_query_gives_a_view(page, query):
    assert View.from_address(f"/{page}", f"?{query}").page == page


@pytest.mark.parametrize(
    "query",
    ["value=2", "value=nan", "value=x", "step=last", "scale=nope", "target=loss", "method=owl"],
)
def test_what_makes_no_sense_has_its_default(query):
    assert View.from_address("/ranks", f"?{query}") == View(page="ranks")


def test_the_first_page_has_the_plain_address():
    assert View().address() == "/"
    assert View.from_address("/", "") == View.from_address(None, None) == View()
    assert View.from_address("/elsewhere", "").page == "missing"


def test_every_choice_has_its_default_among_its_values():
    few = {f.name: f.default for f in fields(View) if choices(f.name) is not None}
    assert {*CHOICES, "method"} == set(few)
    assert all(default in choices(name) for name, default in few.items())


def test_the_pages_offer_every_storage_of_the_registry(folder, monkeypatch):
    monkeypatch.setitem(STORAGES.entries, "three", Entry("of a test", "nowhere:THREE"))
    library = Library(folder)
    for page in (ranks, path):
        assert "'three'" in str(page.layout(library, View(run="scan.zarr")))

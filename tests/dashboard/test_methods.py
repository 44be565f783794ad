"""Methods on the pages: those of the registry that need nothing but spectra, each with its line."""

import shutil

import numpy as np
import pytest

import spectra
from spectra.allocation.candidates import candidates_of
from spectra.allocation.methods.registry import METHODS, offered
from spectra.allocation.path import GROUP, compression_path
from spectra.store.derived import write_group
from spectra_dashboard.access.library import Library
from spectra_dashboard.downloads import made
from spectra_dashboard.pages import path, ranks
from spectra_dashboard.view import View
from spectra_data.errors import InputError
from tests.spectra.by_layer import ENTRY, NAME


@pytest.fixture
def by_layer(monkeypatch):
    monkeypatch.setitem(METHODS.entries, NAME, ENTRY)


def control(layout, name):
    """The control of a field of the view."""
    return next(c for c in layout._traverse() if getattr(c, "id", None) == {"control": name})


def test_a_method_that_is_registered_is_on_the_pages(folder, by_layer):
    library = Library(folder)
    view = View.from_address("/ranks", f"?run=scan.zarr&method={NAME}&beside=uniform")
    assert view.method == NAME
    laid = ranks.layout(library, view)
    for name, page in (("method", laid), ("beside", laid), ("method", path.layout(library, view))):
        options = {option["value"]: option for option in control(page, name).data}
        assert options[NAME]["summary"] == ENTRY.summary
        assert [n for n in options if n in METHODS] == list(offered())
    disabled = {o["value"]: o["disabled"] for o in control(laid, "target").data}
    assert disabled == {"err": False, "budget": False, "threshold": True}
    asked = {"run": "scan.zarr", "method": NAME, "target": "err", "value": "0.3"}
    expected = spectra.allocate(folder / "scan.zarr", method=NAME, err=0.3)
    assert made(library, asked, "json") == expected.to_json().encode()


def test_methods_and_targets_that_do_not_go_together_cannot_be_chosen(folder):
    view = View(page="ranks", run="scan.zarr", target="threshold")
    options = control(ranks.layout(Library(folder), view), "beside").data
    assert [o["value"] for o in options if o.get("disabled")] == [
        name for name in offered() if "threshold" not in METHODS[name].targets
    ]


def test_a_download_by_no_known_method_lists_those_that_the_page_has(folder):
    for name in ("d_rank", "owl", "loss"):
        with pytest.raises(InputError, match=f"no method '{name}'; there are: welore, .*, budget"):
            made(Library(folder), {"run": "scan.zarr", "method": name}, "json")


def test_a_stored_path_is_that_of_its_own_method_alone(folder, tmp_path):
    shutil.copytree(folder / "scan.zarr", tmp_path / "a.zarr")
    given = candidates_of(spectra.open(tmp_path / "a.zarr"))
    write_group(tmp_path / "a.zarr", GROUP, compression_path(given, method="uniform", spacing=0.25))
    run = Library(tmp_path).run("a.zarr")
    assert run.path_of("uniform", "err", "factors").sizes["target"] < 6
    welore = compression_path(given)["rank"]
    np.testing.assert_array_equal(run.path_of("welore", "err", "factors")["rank"], welore)

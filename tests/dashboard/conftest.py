"""A folder of stores, served; and a browser to look at it."""

import contextlib
import shutil

import pytest

import spectra
from spectra.allocation.path import write_path
from tests.dashboard.served import serving, write_scan


@pytest.fixture(scope="session")
def folder(tmp_path_factory, raw_store):
    """A run with raw gradients, two scans, a map, and a broken store."""
    root = tmp_path_factory.mktemp("stores")
    shutil.copytree(raw_store, root / "small" / "spectra.zarr")
    write_scan(root / "scan.zarr", layers=3, size=64)
    write_scan(root / "other.zarr", layers=3, size=64, seed=1)
    write_path(root / "scan.zarr")
    (root / "maps").mkdir()
    spectra.allocate(root / "scan.zarr", err=0.4).save(root / "maps" / "map.json")
    (root / "broken.zarr").mkdir()
    (root / "broken.zarr" / "zarr.json").write_text("{")
    return root


@pytest.fixture(scope="session")
def address(folder):
    with serving(folder) as found:
        yield found


@contextlib.contextmanager
def opened(browser, width=1280, height=900):
    """A page of a browser, and the errors in it so far.

    Without the pages' policy, which forbids what playwright waits with; see `test_policy`.
    """
    found = browser.new_page(viewport={"width": width, "height": height}, bypass_csp=True)
    found.set_default_timeout(20_000)
    errors = []
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    yield found, errors
    found.close()


@pytest.fixture(scope="session")
def desk(browser):
    with opened(browser) as found:
        yield found


@pytest.fixture(scope="session")
def pocket(browser):
    with opened(browser, 390, 844) as found:
        yield found


@pytest.fixture
def page(desk, address):
    """A page that fails the test when anything in it did; one for all, see `go`."""
    yield from watched(*desk, address)


@pytest.fixture
def phone(pocket, address):
    """As `page`, as wide as a phone."""
    yield from watched(*pocket, address)


def watched(page, errors, address):
    errors.clear()
    yield page
    seen = list(errors)
    if not page.url.startswith(address):
        page.goto("about:blank")  # the test's own server is gone
    assert seen == []

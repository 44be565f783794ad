"""A folder of stores, served; and a browser to look at it."""

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


@pytest.fixture
def page(browser):
    """A page that fails the test when anything in it did."""
    found = browser.new_page(viewport={"width": 1280, "height": 900})
    found.set_default_timeout(20_000)
    errors = []
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    yield found
    found.close()
    assert errors == []

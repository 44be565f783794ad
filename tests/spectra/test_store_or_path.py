"""Functions of a store take it opened or by its address."""

import shutil

import pytest
import xarray as xr

import spectra
from spectra.allocation.path import write_path
from spectra.analysis.stored import unread
from spectra.analysis.subspaces import principal_angles, projector_staleness
from spectra.store.evaluations import evaluations
from spectra_data.errors import InputError

FUNCTIONS = {
    "cosine_similarity": spectra.cosine_similarity,
    "exact cosine_similarity": lambda run: spectra.cosine_similarity(run, method="exact"),
    "emergence": lambda run: spectra.emergence(run, replicas=10),
    "gradient_dynamics": spectra.gradient_dynamics,
    "heavy_tail": lambda run: spectra.heavy_tail(run, replicas=0),
    "metrics_table": spectra.metrics_table,
    "subspace_overlap": spectra.subspace_overlap,
    "principal_angles": principal_angles,
    "projector_staleness": projector_staleness,
    "allocate": lambda run: spectra.allocate(run, err=0.3),
    "evaluations": evaluations,
    "verify": lambda run: (spectra.verify(run).whole, spectra.verify(run).snapshots),
}


def same(one, other):
    if isinstance(one, xr.Dataset | xr.DataArray):
        xr.testing.assert_identical(one.compute(), other.compute())
    else:
        assert one == other


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_path_is_as_good_as_an_opened_store(raw_store, name):
    found = FUNCTIONS[name](spectra.open(raw_store))
    same(FUNCTIONS[name](raw_store), found)
    if name == "subspace_overlap":
        same(FUNCTIONS[name](str(raw_store)), found)
        same(FUNCTIONS[name](f"file://{raw_store}"), found)


def test_reports_and_paths_are_written_from_both(store, tmp_path):
    alone = spectra.open(store).map_over_datasets(lambda dataset: dataset.compute())
    alone.encoding = {}
    pages = []
    for given in (spectra.open(store), alone):
        spectra.write_report(given, tmp_path / "r.html")
        pages.append((tmp_path / "r.html").read_text())
    assert pages[0] == pages[1].replace("in memory", str(store))
    for given in (store, spectra.open(store)):
        written = write_path(given)
        assert spectra.open(store)["path"].sizes["target"] == written.sizes["target"]
    for function in (spectra.verify, write_path):
        with pytest.raises(InputError, match="not opened from a store: name the store's address"):
            function(alone)


def test_keywords_and_mistakes(raw_store, tmp_path):
    same(spectra.cosine_similarity(run=str(raw_store)), spectra.cosine_similarity(raw_store))
    with pytest.raises(TypeError, match=r"metrics_table takes a store, .* not a .*Dataset"):
        spectra.metrics_table(spectra.open(raw_store)["spectra"].to_dataset())
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'run'"):
        spectra.metrics_table()
    for function in FUNCTIONS.values():
        with pytest.raises(InputError, match="no store at"):
            function(tmp_path / "none.zarr")


def test_a_damaged_store_is_named(store):
    for chunk in (store / "spectra/weight/c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    with pytest.raises(InputError, match="is damaged: "):
        spectra.metrics_table(store)
    with pytest.raises(InputError, match="is damaged: "):
        spectra.heavy_tail(store)


def test_arrays_are_read_anew_from_wherever_the_store_was_opened(raw_store, tmp_path, monkeypatch):
    shutil.copytree(raw_store, tmp_path / "a.zarr")
    monkeypatch.chdir(tmp_path)
    run = spectra.open("a.zarr")
    monkeypatch.chdir("/")
    for opened in (run, run.isel(step=[0, 1])):
        array = unread(opened, "subspaces/gradient_left")
        assert array.chunks is None
        assert array.equals(opened["subspaces"]["gradient_left"])

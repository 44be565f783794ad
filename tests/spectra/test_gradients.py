"""Exact cosines from raw gradients: right, read once, in bounded memory, here or on a cluster."""

import shutil

import numpy as np
import pytest
import xarray as xr
import zarr
from dask.distributed import Client, LocalCluster
from zarr.storage import LocalStore

import spectra
from spectra.analysis import gradients
from spectra.matrices import Matrix
from spectra.metrics.products import WIDTH, inner_products
from spectra.metrics.similarity import cosine_similarity
from spectra.store import layout as layout_module
from spectra.store.layout import CHUNK_BYTES, Contents, Layout
from spectra.store.layout import _rows_of_chunk as rows_of_chunk
from spectra.store.schema import BFLOAT16_NAN
from spectra.store.writer import StoreWriter
from spectra_data.errors import InputError


def bits_of(values):
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def floats_of(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("components", [1, WIDTH, 2 * WIDTH + 17])
def test_products_are_those_of_the_vectors(components):
    x = np.random.default_rng(0).standard_normal((6, components))
    bits = bits_of(x)
    exact = floats_of(bits).astype(np.float64)
    scale = np.square(exact).sum(-1).max()
    np.testing.assert_allclose(inner_products(bits), exact @ exact.T, atol=1e-6 * scale)
    np.testing.assert_allclose(inner_products(x), x @ x.T, rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12, 1e12, 1e30])
def test_squares_that_leave_float32_are_kept(scale):
    x = np.random.default_rng(0).standard_normal((3, 100))
    bits = np.stack([bits_of(x[0] * scale), bits_of(x[1]), bits_of(x[2] * scale)])
    exact = floats_of(bits).astype(np.float64)
    np.testing.assert_allclose(inner_products(bits), exact @ exact.T, rtol=1e-5)


def test_a_vector_that_is_not_finite_spoils_its_own_products_alone():
    x = np.ones((3, 50), np.float32)
    x[1, 7] = np.inf
    products = inner_products(bits_of(x))
    assert np.isnan(products[1]).all()
    assert np.isnan(products[:, 1]).all()
    np.testing.assert_array_equal(products[np.ix_([0, 2], [0, 2])], 50)


def test_exact_cosines_are_those_of_the_gradients(raw_store):
    run = spectra.open(raw_store)
    cosine = spectra.cosine_similarity(run, "exact")
    assert cosine.attrs["approximate"] is False
    assert cosine.dims == ("matrix", "step", "step_")
    assert cosine["matrix"].values.tolist() == run["spectra"]["matrix"].values.tolist()
    for shape in run["gradients"].children:
        raw = run[f"gradients/{shape}"]["gradient"]
        for name in raw["matrix"].values:
            expected = cosine_similarity(raw.sel(matrix=name).values.reshape(raw.sizes["step"], -1))
            np.testing.assert_allclose(cosine.sel(matrix=name), expected, atol=2e-6)


def test_sketched_cosines_are_within_their_error_of_exact_ones(raw_store):
    run = spectra.open(raw_store)
    exact, sketched = (spectra.cosine_similarity(run, m).values for m in ("exact", "sketch"))
    off = ~np.eye(exact.shape[-1], dtype=bool)
    error = (sketched - exact)[:, off]
    assert np.abs(error).max() > 0
    assert np.sqrt(np.square(error).mean()) < 2 / np.sqrt(256)


def test_steps_and_matrices_that_were_chosen_stay_chosen(raw_store):
    run = spectra.open(raw_store)
    whole = spectra.cosine_similarity(run, "exact")
    part = spectra.cosine_similarity(run.isel(step=[0, 2]), "exact")
    np.testing.assert_array_equal(part, whole.isel(step=[0, 2], step_=[0, 2]))
    assert part["step"].values.tolist() == [0, 6]


def test_a_tree_without_an_address_is_used_as_it_is(raw_store):
    run = spectra.open(raw_store)
    by_hand = xr.DataTree.from_dict({n: node.to_dataset() for n, node in run.subtree_with_keys})
    np.testing.assert_allclose(
        spectra.cosine_similarity(by_hand, "exact"), spectra.cosine_similarity(run, "exact")
    )


@pytest.mark.parametrize("together", [True, False])
def test_every_stored_gradient_is_read_once(raw_store, monkeypatch, together):
    """All matrices of a file at once, or each by itself: no byte but the files' indices twice."""
    if not together:
        monkeypatch.setattr(gradients, "BLOCK_BYTES", 1)
    whole, parts = [], []
    get = LocalStore.get

    async def counted(self, key, prototype, byte_range=None):
        value = await get(self, key, prototype, byte_range)
        if "/gradient/c/" in key and key.startswith("gradients/") and value is not None:
            if byte_range is None:
                whole.append(key)
            elif hasattr(
                byte_range, "start"
            ):  # the index is asked for by its distance from the end
                parts.append((key, byte_range.start, byte_range.end))
        return value

    monkeypatch.setattr(LocalStore, "get", counted)
    spectra.cosine_similarity(spectra.open(raw_store), "exact").compute()
    files = list(raw_store.glob("gradients/*/gradient/c/*/*/*/*"))
    read = whole + [key for key, _, _ in parts]
    assert {str(raw_store / key) for key in read} == {str(file) for file in files}
    assert len(whole) == len(set(whole))
    assert not set(whole) & {key for key, _, _ in parts}
    assert len(parts) == len(set(parts))
    snapshots, matrices = 4, 14
    assert len(parts) == (0 if together else snapshots * matrices)


def test_memory_bounds_what_is_read_at_a_time(raw_store):
    run = spectra.open(raw_store)
    with pytest.raises(InputError, match="raise `memory`, or choose fewer snapshots"):
        spectra.cosine_similarity(run, "exact", memory=1000)
    zeros = np.zeros((10, 5, 64, 100), np.uint16)
    stored = xr.DataArray(zeros, dims=("step", "matrix", "row", "col"))
    stored.encoding["chunks"] = (1, 1, 8, 100)
    row_bytes = 10 * 100 * 2
    for rows in (8, 17, 64, 200, 10_000):
        covered = np.zeros((5, 64), int)
        for matrices, cuts in gradients.matrix_blocks(
            stored, rows * row_bytes * gradients.threads()
        ):
            for cut in cuts:
                covered[matrices, cut] += 1
                assert (matrices.stop - matrices.start) * (cut.stop - cut.start) <= rows
                assert cut.start % 8 == 0
        assert (covered == 1).all()


@pytest.mark.parametrize("rows", [32_000, 11_008, 4096, 768, 7])
def test_large_matrices_are_stored_in_chunks_of_rows(rows):
    """So that part of a 7B matrix is read over all snapshots: 4 MB of each at a time."""
    matrix_bytes = rows * 4096 * 2
    chunk = rows_of_chunk(rows, matrix_bytes)
    assert rows % chunk == 0
    assert chunk * 4096 * 2 <= CHUNK_BYTES
    assert chunk == rows or chunk * 4096 * 2 > CHUNK_BYTES // 4


def test_chunks_of_rows_hold_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(layout_module, "CHUNK_BYTES", 256)
    matrix = Matrix("model.layers.0.mlp.up_proj", 0, "up", 24, 16)
    layout = Layout((matrix,), 3, 3, Contents(("weight",), sketch=0, gradients=True))
    writer = StoreWriter.create(tmp_path / "a.zarr", layout, {"kind": "run"})
    x = np.random.default_rng(0).standard_normal((3, 24, 16))
    for step in range(3):
        weight = np.ones((1, 16), np.float32)
        arrays = {"spectra/weight": weight, "gradients/24x16/gradient": bits_of(x[step])[None]}
        writer.write_snapshot(step, arrays)
    writer.close()
    stored = zarr.open_group(tmp_path / "a.zarr")["gradients/24x16/gradient"]
    assert stored.chunks == (1, 1, 8, 16)
    run = spectra.open(tmp_path / "a.zarr")
    written = floats_of(bits_of(x))
    np.testing.assert_array_equal(run["gradients/24x16"]["gradient"].values[:, 0], written)
    # memory for eight rows at a time: three blocks whose products are added
    memory = 3 * 8 * 16 * 2 * gradients.threads()
    found = spectra.cosine_similarity(run, memory=memory).values[0]
    expected = cosine_similarity(written.reshape(3, -1))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_gradient_that_was_not_recorded_has_no_cosines(tmp_path, raw_store):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(raw_store, copy)
    array = zarr.open_group(copy)["gradients/48x32/gradient"]
    array[1, 0] = BFLOAT16_NAN
    cosine = spectra.cosine_similarity(spectra.open(copy), "exact")
    name = str(array_names(copy)[0])
    assert np.isnan(cosine.sel(matrix=name)[1]).all()
    assert np.isfinite(cosine.sel(matrix=name)[0, [0, 2, 3]]).all()


def array_names(store):
    return zarr.open_group(store)["gradients/48x32/matrix"][:]


def test_a_cluster_gives_the_same(raw_store):
    run = spectra.open(raw_store)
    here = spectra.cosine_similarity(run, "exact").compute()
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as c,
        Client(c),
    ):
        assert gradients.threads() == 2
        there = spectra.cosine_similarity(run, "exact").compute()
    np.testing.assert_array_equal(there, here)


def test_a_selection_that_drops_a_dimension_is_refused(raw_store):
    with pytest.raises(InputError, match="by lists or slices"):
        spectra.cosine_similarity(spectra.open(raw_store).isel(step=-1))


def test_a_store_without_raw_gradients_says_so(store):
    with pytest.raises(InputError, match="record-gradients"):
        spectra.cosine_similarity(spectra.open(store), "exact")
    with pytest.raises(InputError, match="auto, exact or sketch"):
        spectra.cosine_similarity(spectra.open(store), "quick")

"""Matrices selected by layer and role, and nothing else that works differently for it."""

import pickle

import numpy as np
import pytest
import xarray as xr
from packaging.version import Version

import spectra

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def run(recorded_store):
    return spectra.open(recorded_store)


@pytest.fixture
def weight(run):
    return run["spectra"].weight


def matrices(array):
    return array.matrix.values.tolist()


def test_one_matrix_is_its_layer_and_role(weight):
    one = weight.sel(layer=0, role="q")
    assert one.dims == ("step", "index")
    xr.testing.assert_equal(one, weight.sel(matrix=Q))
    assert weight.sel(layer=0, role="q", step=3).dims == ("index",)
    xr.testing.assert_equal(weight.loc[{"role": "q", "layer": 0}], one)


@pytest.mark.parametrize(
    ("labels", "layers", "roles"),
    [
        ({"layer": 1}, [1], "q k v o gate up down"),
        ({"role": "down"}, [0, 1], "down"),
        ({"role": ["up", "q"]}, [0, 1], "q up"),
        ({"layer": [1], "role": "q"}, [1], "q"),
        ({"layer": [0, 1], "role": ["q", "k"]}, [0, 1], "q k"),
        ({"layer": slice(1, None), "role": "v"}, [1], "v"),
        ({"layer": slice(0, 1)}, [0, 1], "q k v o gate up down"),
        ({"layer": np.int64(1), "role": np.array(["q"])}, [1], "q"),
        ({"layer": xr.DataArray([1]), "role": "o", "step": [0, 3]}, [1], "o"),
    ],
)
def test_lists_slices_and_single_labels_keep_the_dimension(weight, labels, layers, roles):
    found = weight.sel(labels)
    places = [(lay, role) for lay in layers for role in roles.split()]
    assert [*zip(found.layer.values.tolist(), found.role.values.tolist(), strict=True)] == places
    assert found.dims == ("step", "matrix", "index")


def test_a_selection_is_selected_from_again(run, weight):
    assert weight.sel(layer=0).sel(role="q").dims == ("step", "matrix", "index")
    assert weight.sel(layer=0).sel(matrix=Q).dims == ("step", "index")
    assert weight.sel(matrix=[Q]).sel(layer=0, role="q").dims == ("step", "index")
    assert weight.sel(layer=0, matrix=Q).dims == ("step", "index")
    assert weight.sel(layer=0, role="q", matrix=[Q]).dims == ("step", "matrix", "index")
    dataset = run["spectra"].to_dataset()
    assert dataset.sel(layer=1, role="up").gradient.dims == ("step", "index")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"layer": 9}, "no matrix has layer 9"),
        ({"layer": 0, "role": "x"}, "no matrix has role 'x'"),
        ({"role": ["q", "x"]}, "no matrix has role 'x'"),
        ({"layer": slice(5, 9), "role": "q"}, "no matrix has layer slice(5, 9, None) and role 'q'"),
    ],
)
def test_a_place_without_a_matrix_is_an_error(weight, labels, message):
    with pytest.raises(KeyError) as error:
        weight.sel(labels)
    assert error.value.args == (message,)


def test_analyses_can_be_selected_from_and_combined_with_the_store(run, weight):
    cosine = spectra.cosine_similarity(run)
    assert cosine.sel(layer=0, role="q").dims == ("step", "step_")
    table = spectra.metrics_table(run)
    tail = spectra.heavy_tail(weight, replicas=0)
    assert tail.sel(layer=1, role=["q", "k"]).alpha.sizes["matrix"] == 2
    for result in (cosine, table.stable_rank, tail.alpha, spectra.gradient_dynamics(run).turning):
        part = result.isel(matrix=[1, 3])
        assert matrices(part * weight) == matrices(weight * part) == matrices(part)
        assert matrices(weight.isel(matrix=[1, 2]) * part) == matrices(weight.isel(matrix=[1]))


def test_arithmetic_and_alignment_are_by_name(weight):
    part = weight.isel(matrix=[3, 1])
    xr.testing.assert_equal((weight - part).sel(matrix=part.matrix), part - part)
    one, other = xr.align(weight.isel(matrix=[0, 1]), weight.isel(matrix=[1, 8]), join="inner")
    assert matrices(one) == matrices(other) == matrices(weight.isel(matrix=[1]))
    plain = xr.DataArray(weight)
    for one, other in ((weight, plain), (plain, weight), (part, plain), (weight, plain.values)):
        assert (one - other).isnull().sum() == (one - one).isnull().sum()
    missing = plain.isel(matrix=[1, 3])
    assert matrices(weight - missing) == matrices(missing)


def test_everything_else_works_as_without(weight, run):
    plain, dataset = xr.DataArray(weight), run["spectra"].to_dataset()
    assert type(plain) is xr.DataArray
    joined = xr.concat([weight.isel(matrix=[0, 1]), weight.isel(matrix=[9])], "matrix")
    assert joined.layer.values.tolist() == [0, 0, 1]
    assert joined.sel(layer=1).sizes["matrix"] == 1
    same = [
        lambda w: w.isel(matrix=3),
        lambda w: w.isel(matrix=slice(None, None, -1)),
        lambda w: w.isel(matrix=(w.role == "q").values),
        lambda w: w.isel(
            matrix=xr.DataArray([0, 1], dims="p"), step=xr.DataArray([0, 1], dims="p")
        ),
        lambda w: w.where(w.role == "q", drop=True),
        lambda w: w.groupby("role").mean(),
        lambda w: w.sortby("role"),
        lambda w: w.mean("matrix"),
        lambda w: w.stack(z=("matrix", "index")).drop_vars(["z", "matrix", "index"]),
        lambda w: (
            w.set_index(matrix=["layer", "role"]).unstack("matrix").drop_vars(["rows", "cols"])
        ),
        lambda w: w.rename(matrix="m", layer="block"),
        lambda w: w.to_dataframe("w").to_xarray(),
        lambda w: w.shift(matrix=1),
        lambda w: w.reindex(matrix=w.matrix.values[[3, 1]]),
        lambda w: w.drop_vars("layer"),
        lambda w: w.assign_coords(layer=1 - w.layer),
        lambda w: w.isel(matrix=0).sel(step=4, method="nearest"),
        lambda w: w.chunk(matrix=2),
        lambda w: pickle.loads(pickle.dumps(w)),
    ]
    for change in same:
        assert change(weight).identical(change(plain))
    assert dataset.merge(dataset[["weight"]]).equals(dataset)


def test_zarr_files_are_those_without_it(run, tmp_path):
    dataset = run["spectra"].to_dataset()[["weight"]]
    dataset.drop_encoding().to_zarr(tmp_path / "a.zarr", consolidated=False)
    require_same(xr.open_zarr(tmp_path / "a.zarr", consolidated=False), dataset)


@pytest.mark.skipif(
    Version(xr.__version__) < Version("2026.4"), reason="xarray writes no StringDType to netCDF"
)
def test_netcdf_files_are_those_without_it(run, tmp_path):
    dataset = run["spectra"].to_dataset()[["weight"]]
    dataset.to_netcdf(tmp_path / "a.nc")
    require_same(xr.open_dataset(tmp_path / "a.nc"), dataset)


def require_same(read, dataset):
    np.testing.assert_array_equal(read.weight, dataset.weight)
    assert read.layer.values.tolist() == dataset.layer.values.tolist()
    assert (read.weight - dataset.weight).sizes == dataset.weight.sizes

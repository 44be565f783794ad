"""Cosine similarity, exact and from sketches."""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import spectra
from spectra.analysis.similarity import cosine_standard_error
from spectra.metrics.similarity import cosine_similarity, sketched_cosine_error
from spectra.recording.sketch import CountSketch
from spectra_data.errors import InputError


def test_known_angles():
    vectors = np.array([[1, 0], [0, 2], [1, 1], [-3, 0]])
    half = np.sqrt(0.5)
    expected = [[1, 0, half, -1], [0, 1, half, 0], [half, half, 1, -half], [-1, 0, -half, 1]]
    np.testing.assert_allclose(cosine_similarity(vectors), expected, atol=1e-15)


@given(st.integers(-300, 300))
def test_scale_changes_nothing(exponent):
    vectors = np.random.default_rng(0).standard_normal((4, 20))
    scaled = vectors * np.array([[1], [10.0**exponent], [1], [1]])
    np.testing.assert_allclose(cosine_similarity(scaled), cosine_similarity(vectors), atol=1e-14)


def test_zero_and_missing_vectors_give_nan_in_their_row_and_column_alone():
    vectors = np.ones((4, 3))
    vectors[1] = 0
    vectors[2, 0] = np.nan
    cosine = cosine_similarity(vectors)
    assert np.isnan(cosine[[1, 2]]).all()
    assert np.isnan(cosine[:, [1, 2]]).all()
    np.testing.assert_array_equal(cosine[np.ix_([0, 3], [0, 3])], 1)


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.95])
def test_sketched_cosines_err_as_stated(cosine):
    """Over many seeds: no bias, and the stated standard error is met to within 15 %."""
    draw = np.random.default_rng(1)
    x, z = draw.standard_normal((2, 40, 50))
    x /= np.linalg.norm(x)
    z -= x * (x * z).sum()
    y = cosine * x + np.sqrt(1 - cosine**2) * z / np.linalg.norm(z)
    components, estimates = 256, []
    for seed in range(600):
        sketch = CountSketch(components, seed)
        pair = np.stack([sketch(torch.from_numpy(m)).numpy() for m in (x, y)])
        estimates.append(cosine_similarity(pair)[0, 1])
    error = float(sketched_cosine_error(cosine, components))
    assert np.mean(estimates) == pytest.approx(cosine, abs=4 * error / np.sqrt(600))
    assert np.std(estimates) == pytest.approx(error, rel=0.15)


def test_a_sketch_is_linear_and_depends_on_seed_and_shape_alone():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 30, 20, generator=draw, dtype=torch.float64)
    sketch = CountSketch(64, seed=1)
    torch.testing.assert_close(sketch(a + 2 * b), sketch(a) + 2 * sketch(b))
    assert torch.equal(sketch(a), CountSketch(64, seed=1)(a))
    assert not torch.equal(sketch(a), CountSketch(64, seed=2)(a))


def test_the_labelled_function_says_that_it_is_approximate(store):
    run = spectra.open(store)
    cosine = spectra.cosine_similarity(run)
    assert cosine.dims == ("matrix", "step", "step_")
    assert cosine.attrs["approximate"] is True
    assert cosine.attrs["standard_error"] == 1 / 16  # 256 components
    assert cosine.step_.values.tolist() == [0, 3, 6, 7]
    one = cosine.sel(matrix="model.layers.1.mlp.up_proj").values
    np.testing.assert_array_equal(np.diag(one), 1)
    expected = cosine_similarity(run["sketches"].gradient.values[:, -2])
    np.testing.assert_allclose(one, expected)
    error = cosine_standard_error(cosine).sel(matrix="model.layers.1.mlp.up_proj")
    np.testing.assert_allclose(error, (1 - one**2) / 16)


def test_a_store_without_sketches_says_so():
    with pytest.raises(InputError, match="no gradient sketches"):
        spectra.cosine_similarity(xr.DataTree())

"""Saturation, turning and their like, on cosines drawn by hand; emergence on planted relations."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

import spectra
from spectra.metrics import dynamics
from spectra.metrics.correlation import rank_correlation, ranked_within
from spectra.metrics.ranks import effective_rank, frobenius_norm, rank_one_residual
from spectra_data.errors import InputError


def cosines_with(*consecutive):
    """All pairs, of which only neighbours matter."""
    n = len(consecutive) + 1
    cosine = np.eye(n)
    for i, value in enumerate(consecutive):
        cosine[i, i + 1] = cosine[i + 1, i] = value
    return cosine


@pytest.mark.parametrize(
    ("consecutive", "place"),
    [
        ((0.9, 0.9, 0.9), 0),
        ((0.1, 0.9, 0.9), 1),
        ((0.9, 0.1, 0.9), 2),
        ((0.9, 0.9, 0.1), np.nan),
        ((0.1, 0.5, 0.6), 2),  # at the level is not above it
        ((0.1, 0.9, np.nan), 1),
        ((np.nan, np.nan, np.nan), np.nan),
    ],
)
def test_saturation_is_the_first_snapshot_after_which_cosines_stay_high(consecutive, place):
    np.testing.assert_equal(dynamics.saturation(cosines_with(*consecutive), 0.5), place)


def test_turning_weighs_pairs_by_their_steps():
    cosine = cosines_with(0.5, 0.9, np.nan)
    steps = [0, 10, 40, 50]
    assert dynamics.turning(cosine, steps) == pytest.approx((10 * 0.5 + 30 * 0.1) / 40)
    assert dynamics.turning(cosine, steps, first=10) == pytest.approx(0.1)
    assert np.isnan(dynamics.turning(np.full((3, 3), np.nan), [0, 1, 2]))


def test_a_runs_dynamics(store):
    run = spectra.open(store)
    found = spectra.gradient_dynamics(run)
    cosine = spectra.cosine_similarity(run)
    name = "model.layers.0.mlp.down_proj"
    one = found.sel(matrix=name)
    np.testing.assert_allclose(
        one.consecutive_cosine[1:], cosine.sel(matrix=name).values.diagonal(1), rtol=1e-6
    )
    values = run["spectra"].to_dataset().sel(matrix=name)
    np.testing.assert_allclose(one.rank_one_residual, rank_one_residual(values.gradient))
    effective = effective_rank(values.gradient)
    np.testing.assert_allclose(one.effective_rank_decay, effective / effective[0])
    ratio = frobenius_norm(values["update"]) / frobenius_norm(values.weight)
    np.testing.assert_allclose(one.update_to_weight, ratio)
    assert np.isnan(one.update_to_weight[0])  # no step led to the first state
    assert found.attrs["left_out"] == {}
    assert set(found.saturation_step.values[np.isfinite(found.saturation_step)]) <= {0, 3, 6, 7}


def test_what_was_not_recorded_is_left_out_with_its_reason(store):
    run = spectra.open(store)
    only = xr.DataTree.from_dict({"spectra": run["spectra"].to_dataset()[["weight"]]})
    found = spectra.gradient_dynamics(only)
    assert set(found.attrs["left_out"]) == {"cosines", "ranks", "update_to_weight"}
    with pytest.raises(InputError, match="two snapshots"):
        spectra.gradient_dynamics(run.isel(step=[0], missing_dims="ignore"))


def test_rank_correlation_is_scipys_with_an_interval_that_covers():
    draw = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        x = draw.standard_normal(40)
        y = 0.6 * x + 0.8 * draw.standard_normal(40)
        found = rank_correlation(x, y, replicas=300, seed=seed)
        assert found.value == pytest.approx(spearmanr(x, y).statistic)
        covered += found.low < 0.582 < found.high  # Spearman's ρ of a Pearson correlation of 0.6
    assert 0.88 < covered / 200 < 0.99


def test_a_correlation_of_too_few_or_constant_values_is_nothing():
    assert np.isnan(rank_correlation([1, 2, 3], [1, 2, 3]).value)
    assert np.isnan(rank_correlation([1.0] * 9, range(9)).value)
    found = rank_correlation([1, 2, 3, 4, 5, np.nan], [5, 4, 3, 2, 1, 0])
    assert (found.value, found.pairs) == (-1, 5)


def planted(relation):
    """A run of 30 matrices; those whose gradients turn more end with lower ranks, or not."""
    draw = np.random.default_rng(0)
    names = np.array([f"model.layers.{i}.mlp.up_proj" for i in range(30)], dtype=object)
    turning = np.linspace(0.1, 0.9, 30)
    decay = {1: turning, 0: draw.permutation(turning), -1: turning[::-1]}[relation]
    index = np.arange(16)
    first = np.ones((30, 16))
    last = np.exp(-decay[:, None] * index)
    coords = {
        "step": [0, 10],
        "matrix": names,
        **{n: ("matrix", np.full(30, 16)) for n in ("rows", "cols")},
        "layer": ("matrix", np.arange(30)),
        "role": ("matrix", np.array(["up", "down"] * 15, dtype=object)),
    }
    values = np.stack([first, last])
    data = dict.fromkeys(("weight", "gradient"), (("step", "matrix", "index"), values))
    cosine = np.ones((30, 2, 2))
    cosine[:, 0, 1] = cosine[:, 1, 0] = 1 - turning
    steps = {"step": [0, 10], "step_": [0, 10], "matrix": names}
    run = xr.DataTree.from_dict({"spectra": xr.Dataset(data, coords=coords)})
    return run, xr.DataArray(cosine, dims=("matrix", "step", "step_"), coords=steps)


def test_a_planted_relation_is_found_and_an_opposite_one_is_too():
    for sign in (1, -1):
        run, cosine = planted(sign)
        found = spectra.emergence(run, cosine=cosine).sel(cause="turning", outcome="low_rank")
        for group in ("all", "up", "down", "within roles"):
            assert sign * found.correlation.sel(group=group) > 0.98, group
        assert found["pairs"].sel(group="up") == 15


def test_where_there_is_no_relation_the_interval_holds_zero():
    run, cosine = planted(0)
    found = spectra.emergence(run, cosine=cosine).sel(group="all", cause="turning")
    assert (found.low < 0).all()
    assert (found.high > 0).all()


def test_equal_values_share_a_rank_within_their_role():
    ranked = ranked_within(np.array([2.0, 2, 2, 5, np.nan]), np.array(["q"] * 5, dtype=object))
    np.testing.assert_array_equal(ranked, [0.375, 0.375, 0.375, 0.875, np.nan])


def test_a_missing_final_weight_is_no_full_rank():
    run, cosine = planted(1)
    data = run["spectra"].to_dataset()
    data["weight"][1, 4] = np.nan
    data["weight"][1, 5] = 0
    broken = xr.DataTree.from_dict({"spectra": data})
    found = spectra.emergence(broken, cosine=cosine)
    assert np.isnan(found.reduction[4])
    assert found.reduction[5] == 0
    assert found["pairs"].sel(group="all", cause="turning", outcome="reduction") == 29


def test_cosines_of_other_steps_are_refused():
    run, cosine = planted(1)
    with pytest.raises(KeyError):
        spectra.gradient_dynamics(run, cosine=cosine.assign_coords(step=[1, 2], step_=[1, 2]))


def test_a_run_without_gradients_has_no_emergence(store):
    run = spectra.open(store)
    only = xr.DataTree.from_dict({"spectra": run["spectra"].to_dataset()[["weight"]]})
    with pytest.raises(InputError, match="no spectra of the gradient"):
        spectra.emergence(only)

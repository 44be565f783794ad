"""Overlap, angles and what is kept, on subspaces whose answers are known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

import spectra
from spectra.analysis.subspaces import principal_angles as labelled_angles
from spectra.analysis.subspaces import projector_staleness
from spectra.metrics.subspaces import (
    chance_overlap,
    kept_energy,
    principal_angles,
    subspace_overlap,
)
from spectra.recording.start import record
from spectra_data.errors import InputError
from tests.small import random_batch, small_llama, train


def basis(side, k, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((side, k)))[0]


@given(st.integers(0, 1000))
def test_signs_and_order_of_vectors_change_nothing(seed):
    draw = np.random.default_rng(seed)
    u, v = basis(12, 4, seed), basis(12, 4, seed + 1)
    turned = v @ np.linalg.qr(draw.standard_normal((4, 4)))[0]
    assert subspace_overlap(u, turned) == pytest.approx(float(subspace_overlap(u, v)))
    np.testing.assert_allclose(principal_angles(u, turned), principal_angles(u, v), atol=1e-7)
    assert subspace_overlap(u, -u) == pytest.approx(1)


def test_unrelated_subspaces_overlap_by_chance():
    overlaps = [subspace_overlap(basis(40, 5, i), basis(40, 5, 10_000 + i)) for i in range(2000)]
    assert np.mean(overlaps) == pytest.approx(float(chance_overlap(5, 40)), rel=0.03)


def test_angles_are_scipys_and_keep_small_ones():
    for seed in range(5):
        u, v = basis(20, 4, seed), basis(20, 4, seed + 50)
        np.testing.assert_allclose(principal_angles(u, v), np.sort(subspace_angles(u, v)))
    angle = 1e-10
    u, v = np.eye(4)[:, :1], np.array([[np.cos(angle)], [np.sin(angle)], [0], [0]])
    assert principal_angles(u, v)[0] == pytest.approx(angle, rel=1e-6)
    assert principal_angles(np.eye(4)[:, :2], np.eye(4)[:, 2:]) == pytest.approx([np.pi / 2] * 2)


def test_overlap_is_the_mean_squared_cosine_of_the_angles():
    u, v = basis(15, 3, 0), basis(15, 3, 1)
    expected = np.square(np.cos(principal_angles(u, v))).mean()
    assert subspace_overlap(u, v) == pytest.approx(expected)


def test_directions_that_are_not_there_do_not_count():
    u = np.eye(5)[:, :3]
    v = u.copy()
    v[:, 2] = np.nan
    assert subspace_overlap(u, v) == 1
    np.testing.assert_array_equal(principal_angles(u, v), [0, 0, np.nan])
    assert np.isnan(subspace_overlap(u, np.full((5, 3), np.nan)))


def test_angles_do_not_depend_on_which_side_lacks_a_direction():
    u, v = basis(10, 3, 0), basis(10, 3, 1)
    lacking = v.copy()
    lacking[:, 2] = np.nan
    expected = np.sort(subspace_angles(u, v[:, :2]))
    np.testing.assert_allclose(principal_angles(u, lacking)[:2], expected)
    np.testing.assert_allclose(principal_angles(lacking, u)[:2], expected)
    np.testing.assert_allclose(principal_angles(u, v[:, :2]), expected)
    assert np.isnan(principal_angles(u, lacking)[2])


def test_what_a_projector_keeps():
    g = np.random.default_rng(0).standard_normal((20, 30))
    u, s, _ = np.linalg.svd(g)
    assert kept_energy(u[:, :4], g) == pytest.approx((s[:4] ** 2).sum() / (s**2).sum())
    assert kept_energy(u, g) == pytest.approx(1)
    assert kept_energy(u[:, :4], g * 1e-30) == pytest.approx(float(kept_energy(u[:, :4], g)))
    assert np.isnan(kept_energy(u[:, :4], g * 0))
    unrelated = [kept_energy(basis(20, 4, i), g) for i in range(500)]
    assert np.mean(unrelated) == pytest.approx(4 / 20, rel=0.05)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_runs_overlaps_are_those_of_its_gradients(raw_store, side):
    run = spectra.open(raw_store)
    result = spectra.subspace_overlap(run, side).compute()
    name = "model.layers.1.mlp.up_proj"
    gradients = run["gradients/48x32"]["gradient"].sel(matrix=name).values.astype(np.float64)
    bases = [np.linalg.svd(g if side == "left" else g.T)[0][:, :3] for g in gradients]
    expected = [[subspace_overlap(a, b) for b in bases] for a in bases]
    # stored gradients are bfloat16, the stored subspaces are of float32
    np.testing.assert_allclose(result.overlap.sel(matrix=name), expected, atol=0.02)
    assert result.chance.sel(matrix=name) == 3 / (48 if side == "left" else 32)
    assert result.overlap.dims == ("matrix", "step", "step_")
    angles = labelled_angles(run, side).compute()
    cosines = np.square(np.cos(angles)).mean("component")
    np.testing.assert_allclose(cosines, result.overlap, atol=1e-6)


def test_a_runs_staleness_is_that_of_its_projectors(raw_store):
    run = spectra.open(raw_store)
    result = projector_staleness(run).compute()
    name = "model.layers.0.self_attn.k_proj"
    gradients = run["gradients/16x32"]["gradient"].sel(matrix=name).values
    bases = run["subspaces"]["gradient_left"].sel(matrix=name).values[:, :16]
    expected = [[kept_energy(p, g) for g in gradients] for p in bases]
    np.testing.assert_allclose(result.kept.sel(matrix=name), expected, rtol=1e-6)
    assert result.kept["matrix"].values.tolist() == run["spectra"]["matrix"].values.tolist()
    assert (result.kept.values.diagonal(axis1=1, axis2=2) > result.chance.values[:, None]).all()


def test_what_was_not_recorded_is_named(store):
    run = spectra.open(store)
    with pytest.raises(InputError, match="record-subspaces"):
        spectra.subspace_overlap(run)
    with pytest.raises(InputError, match="left or right"):
        spectra.subspace_overlap(run, "top")


def test_chance_counts_the_directions_that_gradients_have(tmp_path):
    """A probe batch of two windows of two tokens leaves gradients of low rank."""
    model = small_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    probe = random_batch(0, windows=1, length=3)
    path = tmp_path / "low.zarr"
    with record(model, optimizer, path, probe=probe, every=1, steps=2, subspaces=4) as recorder:
        train(model, optimizer, 2, recorder=recorder)
    run = spectra.open(path)
    name = "model.layers.1.mlp.down_proj"
    bases = run["subspaces"]["gradient_left"].sel(matrix=name).values
    present = (~np.isnan(bases).all(axis=1)).sum(axis=1).max()
    assert present < 4
    found = spectra.subspace_overlap(run).sel(matrix=name)
    assert found.chance == present / 32
    assert found.overlap.values.diagonal() == pytest.approx(1)

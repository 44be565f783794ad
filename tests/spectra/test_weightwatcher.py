"""WeightWatcher's columns: the same numbers as it, and where its conventions go wrong."""

import contextlib
import io
import logging

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import spectra
from spectra.matrices import find_matrices
from spectra.metrics.measures import measures
from spectra.metrics.weightwatcher import COLUMNS, columns


def matrix_with_tail(rows=100, cols=150, scale=0.1):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((rows, cols))
    u = np.linalg.qr(draw.standard_normal((rows, 30)))[0]
    v = np.linalg.qr(draw.standard_normal((cols, 30)))[0]
    return scale * (x + u * (60 * np.arange(1, 31) ** -0.8) @ v.T)


def both(matrix):
    s = np.linalg.svd(matrix, compute_uv=False)
    return columns(s, *matrix.shape), measures(s, *matrix.shape)


def weightwatcher_table(model):
    weightwatcher = pytest.importorskip("weightwatcher", reason="needs the extra `peers`")
    logging.getLogger("weightwatcher").setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()):
        table = weightwatcher.WeightWatcher(model=model).analyze(mp_fit=True)
    return table.set_index("longname")


def assert_parity(model):
    theirs = weightwatcher_table(model)
    worst = dict.fromkeys(COLUMNS, 0.0)
    compared = 0
    for matrix, weight in find_matrices(model)[0].items():
        s = spectra.singular_values(weight.value.detach().double(), method="svd").numpy()
        ours = columns(s, matrix.rows, matrix.cols)
        compared += 1
        for name in COLUMNS:
            expected = float(theirs.loc[matrix.name, name])
            worst[name] = max(worst[name], abs(ours[name] - expected) / max(abs(expected), 1e-12))
    print(f"\n{compared} matrices; greatest relative difference by column")
    for name, difference in worst.items():
        print(f"{name:>16}  {difference:.1e}")
        assert difference < 1e-6, name
    return compared


@pytest.mark.slow
def test_parity_on_a_trained_checkpoint(shared):
    folder = shared / "data/checkpoints/stories260K"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert assert_parity(model) == 35


@pytest.mark.slow
def test_parity_on_smollm():
    pytest.importorskip("gguf", reason="needs the extra `peers`")
    from tests.smollm import smollm

    model = smollm()
    assert assert_parity(model) == 210


def test_the_table_has_its_columns(store):
    run = spectra.open(store)
    table = spectra.metrics_table(run, compat="weightwatcher")
    assert list(table.data_vars) == list(COLUMNS)
    name = "model.layers.1.mlp.gate_proj"
    s = run["spectra"].weight.isel(step=2).sel(matrix=name).values
    expected = columns(s, 48, 32)
    for column in COLUMNS:
        assert float(table[column].sel(matrix=name, kind="weight")[2]) == expected[column]


def test_where_nothing_goes_wrong_both_agree():
    theirs, ours = both(matrix_with_tail())
    for name, own in (("alpha", "alpha"), ("D", "ks_distance"), ("stable_rank", "stable_rank")):
        assert theirs[name] == pytest.approx(float(ours[own]), rel=1e-6)
    assert theirs["xmin"] == pytest.approx(float(ours["x_min"]))
    assert theirs["num_pl_spikes"] == ours["tail_size"]
    assert theirs["spectral_norm"] == pytest.approx(float(ours["spectral_norm"]) ** 2)


def test_its_alpha_depends_on_scale_and_ours_does_not():
    """It drops eigenvalues up to 1e-5: of a gradient, all of them."""
    (one, own), (small, own_small) = both(matrix_with_tail()), both(matrix_with_tail(scale=1e-4))
    assert own_small["alpha"] == pytest.approx(float(own["alpha"]), rel=1e-9)
    assert abs(small["alpha"] - one["alpha"]) > 0.1
    assert both(matrix_with_tail(scale=1e-9))[0]["alpha"] == -1


def test_its_entropy_is_above_one_for_low_ranks_and_ours_is_not():
    """It divides by the logarithm of the numerical rank, of which 1 is not a possible one."""
    s = np.zeros(64)
    s[0] = 1
    with np.errstate(all="ignore"):
        theirs = columns(s, 64, 64)["entropy"]
    assert not 0 <= theirs <= 1
    assert measures(s, 64, 64)["spectral_entropy"] == 0


def test_its_spikes_are_not_calibrated_and_ours_are():
    """Weak spikes, five Tracy-Widom widths above the bulk, stay under its widened edge."""
    rows, cols = 300, 500
    draw = np.random.default_rng(1)
    x = draw.standard_normal((rows, cols))
    u = np.linalg.qr(draw.standard_normal((rows, 4)))[0]
    v = np.linalg.qr(draw.standard_normal((cols, 4)))[0]
    theirs, ours = both(x + 27.0 * u @ v.T)
    assert ours["mp_spikes"] == 4
    assert theirs["num_spikes"] < 4


def test_its_powers_overflow_and_ours_do_not():
    s = np.r_[1e9, np.full(30, 9e8)] * np.linspace(1, 0.98, 31)
    theirs, ours = columns(s, 31, 31), measures(s, 31, 31)
    assert ours["alpha"] > 20
    assert np.isinf(theirs["log_alpha_norm"])
    assert np.isfinite(ours["log_alpha_norm"])


def test_under_twenty_values_it_fits_another_estimator():
    s = np.sqrt(np.sort(np.random.default_rng(0).pareto(1.5, 15) + 1)[::-1])
    theirs, ours = columns(s, 15, 20), measures(s, 15, 20, replicas=5)
    assert theirs["num_pl_spikes"] >= 8
    assert theirs["alpha"] != pytest.approx(float(ours["alpha"]), rel=0.01)
    assert ours["verdict"] == "too few values"


def test_small_matrices_are_skipped_as_it_does():
    assert np.isnan(columns(np.arange(7, 0, -1.0), 7, 9)["alpha"])
    assert np.isfinite(columns(np.arange(8, 0, -1.0), 8, 9)["alpha"])

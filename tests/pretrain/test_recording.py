"""Pretraining with all that can be recorded."""

import json

import numpy as np
import pytest

import spectra
from spectra.cli import main
from spectra_data.errors import InputError
from spectra_pretrain.rehearsal import dry_run
from spectra_pretrain.run import Pretraining, pretrain
from tests.pretrain.runs import assert_same_run, flags, options_of

EVERYTHING = {
    "record_early": True,
    "record_spectra": "weight,gradient,training_gradient,update",
    "record_gradients": True,
    "record_subspaces": 2,
}


def test_everything_can_be_recorded_and_its_size_is_said_before(inputs, tmp_path, capsys):
    out = tmp_path / "run"
    status = main(["pretrain", *flags(inputs, out=str(out), record_subspaces=2),
                   "--record-early", "--record-gradients",
                   "--record-spectra", EVERYTHING["record_spectra"]])  # fmt: skip
    _, err = capsys.readouterr()
    assert status == 0
    assert "recording every 3 steps and early in doubling steps: 6 snapshots" in err
    for part in ("spectra", "sketches", "gradients", "subspaces"):
        assert f"{part} " in err.split("the store takes at most")[1].splitlines()[0]
    run = spectra.open(out / "spectra.zarr")
    assert run["spectra"].step.values.tolist() == [0, 1, 2, 3, 6, 8]
    assert {"gradients", "subspaces", "sketches"} <= set(run.children)
    norms = (run["spectra"].training_gradient.isel(step=-1) ** 2).sum() ** 0.5
    assert 0.2 < float(norms / run["train"].gradient_norm[-1]) <= 1.0
    assert spectra.verify(out / "spectra.zarr").whole


@pytest.mark.parametrize("store", ["elsewhere.zarr", "memory://pretrain/a.zarr"])
def test_a_run_can_record_anywhere_and_be_resumed(inputs, tmp_path, finished, store):
    place = store if "://" in store else str(tmp_path / store)
    options = options_of(inputs, store=place)
    out = tmp_path / "run"
    summary = pretrain(options, out)
    assert summary["store"] == place
    assert not (out / "spectra.zarr").exists()
    (out / "summary.json").unlink()
    pretrain(options, out, resume=True)
    one, other = spectra.open(finished[0] / "spectra.zarr"), spectra.open(place)
    for name in ("weight", "gradient", "update"):
        np.testing.assert_array_equal(one["spectra"][name], other["spectra"][name])


def test_recording_in_the_background_gives_the_same_run(inputs, tmp_path, finished):
    options = options_of(inputs, record_background="wait", record_queue=2)
    summary = pretrain(options, tmp_path / "run")
    assert_same_run(finished[0], tmp_path / "run")
    assert "decomposition" not in summary["recorder_seconds"]


def test_listed_steps_and_chosen_matrices(inputs, tmp_path):
    out = tmp_path / "run"
    pretrain(options_of(inputs, record_every="2,5", record_matrices="*.mlp.*,*q_proj"), out)
    run = spectra.open(out / "spectra.zarr")
    assert run["spectra"].step.values.tolist() == [2, 5]
    assert set(run["spectra"].role.values.tolist()) == {"q", "gate", "up", "down"}
    assert np.isfinite(run["spectra"]["update"].isel(index=0)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"record_every": "1,x"}, "every N steps or at listed steps such as 0,10,100"),
        ({"record_every": -1}, "--record-every is at least 0"),
        ({"record_every": "1,99"}, "at step 99: the run has 8 steps"),
        ({"record_spectra": "weights"}, "no spectra of 'weights'"),
        ({"record_overhead": 2.0}, "--record-overhead is a share between 0 and 1"),
        ({"record_queue": 0}, "--record-queue is at least 1"),
        ({"record_subspaces": -1}, "--record-subspaces is at least 0"),
    ],
)
def test_impossible_recordings_are_refused_in_a_line(inputs, changes, message):
    with pytest.raises(InputError, match=message):
        options_of(inputs, **changes)


def test_a_dry_run_says_what_recording_costs(inputs, capsys):
    dry_run(Pretraining(options_of(inputs, record_gradients=True)), as_json=True)
    plan = json.loads(capsys.readouterr().out)
    assert plan["snapshot_seconds"] > 0
    assert set(plan["store_bytes"]) == {"spectra", "status", "sketches", "gradients", "train"}
    numbers = plan["block_parameters"]
    assert plan["store_bytes"]["gradients"] == pytest.approx(
        plan["snapshots"] * 2 * numbers, rel=0.2
    )

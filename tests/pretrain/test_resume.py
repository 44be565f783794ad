"""Runs that are interrupted, and go on."""

import random
import signal
from pathlib import Path

import pytest
import torch

import spectra
from spectra.cli import main
from spectra_data.errors import InputError
from spectra_pretrain.checkpoint import Checkpoints, step_of
from spectra_pretrain.run import pretrain
from tests.forked import Forked, signalled
from tests.pretrain.runs import assert_same_run, flags, options_of

LONG = {"checkpoint_every": 7, "record_every": 3}


def interrupt(inputs, out, number, steps, files):
    """Start a run in another process, or resume it, and stop it at a file after a checkpoint."""
    arguments = flags(inputs, steps=steps, out=str(out), **LONG)
    command = ["pretrain", "--resume", *arguments]
    process = Forked(signalled, number, files, "checkpoints/step-", main, command)
    _, errors = process.communicate()
    return process.returncode, errors


@pytest.fixture(
    scope="module", params=[26, pytest.param(300, marks=pytest.mark.slow)], ids="{}-steps".format
)
def long_run(request, inputs, tmp_path_factory):
    """A run that nothing interrupted, long enough to be interrupted: its steps and its folder."""
    out = tmp_path_factory.mktemp("long") / "run"
    pretrain(options_of(inputs, steps=request.param, **LONG), out)
    return request.param, out


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_resumes_bit_for_bit(inputs, long_run, tmp_path, number):
    steps, whole = long_run
    out = tmp_path / "run"
    status, errors = interrupt(inputs, out, number, steps, files=250)
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 128 + number
        assert "checkpoint saved; resume with " in errors
        assert "Traceback" not in errors
        step = int(errors.split("stopped after step ")[1].split()[0])
        assert (out / f"checkpoints/step-{step:06d}").exists()
    assert spectra.verify(out / "spectra.zarr").whole
    assert not (out / "model").exists()
    assert main(["pretrain", "--resume", "--out", str(out)]) == 0
    assert_same_run(whole, out)


def test_a_run_killed_at_random_moments_again_and_again_is_the_same_run(inputs, long_run, tmp_path):
    steps, whole = long_run
    out = tmp_path / "run"
    draw = random.Random(0)
    checkpoints = Checkpoints(out / "checkpoints")
    reached = []
    for _ in range(steps // 13):
        status, _ = interrupt(inputs, out, signal.SIGKILL, steps, draw.randrange(200))
        assert status == -signal.SIGKILL
        assert spectra.verify(out / "spectra.zarr").whole
        reached.append(step_of(checkpoints.latest()))
    assert reached == sorted(set(reached))
    assert main(["pretrain", "--resume", "--out", str(out)]) == 0
    assert_same_run(whole, out)


def test_a_killed_run_without_a_checkpoint_begins_again(finished, inputs, tmp_path):
    out = tmp_path / "run"
    pretrain(options_of(inputs), out)
    for left in ("checkpoints", "model"):
        (out / left).rename(tmp_path / left)
    pretrain(options_of(inputs), out, resume=True)
    assert_same_run(finished[0], out)


def test_resume_of_nothing_begins_and_of_a_finished_run_does_nothing(finished, inputs, tmp_path):
    out, summary = finished
    assert pretrain(options_of(inputs), out, resume=True) == summary
    pretrain(options_of(inputs, steps=2), tmp_path / "new", resume=True)
    assert (tmp_path / "new/model").exists()


def test_resuming_with_other_options_names_them(finished, inputs, capsys):
    out, _ = finished
    assert main(["pretrain", "--resume", "--out", str(out), "--steps", "9", "--clip", "2"]) == 2
    assert "other options: --steps 9 (was 8), --clip 2.0 (was 1.0)" in capsys.readouterr().err


def test_a_cleared_cache_and_a_changed_corpus_are_told_apart(inputs, tmp_path, monkeypatch):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(Path(inputs["data"]).read_text())
    options = options_of(inputs, data=str(corpus), steps=6)
    out = tmp_path / "run"
    whole = pretrain(options, out)
    (out / "summary.json").unlink()  # as if it had been killed in the last step
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    resumed = pretrain(options, out, resume=True)  # tokenised again, the same
    for name in ("train_loss", "validation_loss", "validation_perplexity"):
        assert resumed[name] == whole[name]
    (out / "summary.json").unlink()
    corpus.write_text(corpus.read_text() + '{"text": "more"}\n')
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache2"))
    with pytest.raises(InputError, match="no longer the one that"):
        pretrain(options, out, resume=True)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("spectra.zarr", "has lost its spectra.zarr"),
        ("pretrain.json", "has lost its pretrain.json, .*: restore it from "),
    ],
)
def test_a_run_that_lost_a_part_is_not_gone_on_with(inputs, tmp_path, lost, message):
    out = tmp_path / "run"
    pretrain(options_of(inputs), out)
    (out / "summary.json").unlink()
    (out / lost).rename(tmp_path / "lost")
    before = sorted(p.name for p in out.iterdir())
    with pytest.raises(InputError, match=message):
        pretrain(options_of(inputs), out, resume=True)
    assert sorted(p.name for p in out.iterdir()) == before


def test_checkpoints_keep_the_latest_and_leave_no_parts(finished, inputs):
    out, _ = finished
    options = options_of(inputs)
    assert len(list((out / "checkpoints").iterdir())) == options.checkpoints.keep_checkpoints
    assert Checkpoints(out / "nowhere").latest() is None


def test_a_full_disk_at_a_checkpoint_is_one_line_and_leaves_the_last_one(
    inputs, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    original = torch.save

    def full(state, *args, **kwargs):
        if state["step"] > 3:
            raise RuntimeError("No space left on device")
        original(state, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    assert main(["pretrain", *flags(inputs, out=str(out))]) == 1
    assert "could not be written: No space left on device" in capsys.readouterr().err
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-000003"]

"""Damaged files of a run: named, never trained on from, never removed."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from spectra.cli import main
from spectra_data.errors import InputError
from spectra_data.integrity import unsealed
from spectra_pretrain.checkpoint import FORMAT, HASHES, WITHOUT_HASHES, Checkpoints
from spectra_pretrain.run import pretrain
from tests.pretrain.runs import assert_same_run, flags, options_of


def saved(folder, steps=(3, 6), keep=2) -> Checkpoints:
    """Checkpoints of a model of one tensor."""
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    for step in steps:
        weights = {"weight": torch.full((4,), float(step))}
        checkpoints.save(
            step,
            lambda target, weights=weights: save_file(weights, target / "model.safetensors"),
            {"step": step},
        )
    return checkpoints


def flip(file, bit):
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def content_of(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_checkpoint_with_any_bit_flipped_is_left_for_the_one_before(tmp_path_factory, data):
    checkpoints = saved(tmp_path_factory.mktemp("flipped"))
    latest = checkpoints.latest()
    file = data.draw(st.sampled_from(sorted(p for p in latest.rglob("*") if p.is_file())))
    flip(file, data.draw(st.integers(0, 8 * file.stat().st_size - 1)))
    before, said = content_of(checkpoints.folder), []
    found = checkpoints.whole(said.append)
    if found == latest:  # the flip is in blanks of the hashes' file, or in the name of its own hash
        assert file.name == HASHES
        assert not said
    else:
        assert found.name == "step-000003"
        assert said[0].startswith(f"{latest} is damaged (")
        assert len(said) == 1
    assert content_of(checkpoints.folder) == before


def lose(checkpoint):
    (checkpoint / "model.safetensors").unlink()


def cut(checkpoint):
    file = checkpoint / "training.pt"
    file.write_bytes(file.read_bytes()[:100])


def empty(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"")


def add(checkpoint):
    (checkpoint / "adapter_config.json").write_text("{}")


def lose_hashes(checkpoint):
    (checkpoint / HASHES).unlink()


def rename(checkpoint):
    checkpoint.rename(checkpoint.with_name("step-000009"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose, "model.safetensors is missing"),
        (cut, "training.pt is not what was written"),
        (empty, "model.safetensors is not what was written"),
        (add, "adapter_config.json was added later"),
        (lose_hashes, "hashes.json is missing"),
        (rename, "it belongs to step 6"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said(tmp_path, damage, reason):
    checkpoints = saved(tmp_path)
    damage(checkpoints.latest())
    said = []
    assert checkpoints.whole(said.append).name == "step-000003"
    assert f"({reason}): resuming from step-000003" in said[0]


def test_where_no_checkpoint_is_whole_all_are_named_and_kept(tmp_path):
    checkpoints = saved(tmp_path)
    for checkpoint in checkpoints.folder.iterdir():
        lose(checkpoint)
    before = content_of(checkpoints.folder)
    with pytest.raises(InputError, match=r"step-000006 is damaged .*; .*step-000003 is damaged"):
        checkpoints.whole(print)
    assert content_of(checkpoints.folder) == before


def test_a_checkpoint_before_hashes_is_gone_on_from_with_a_line(tmp_path):
    checkpoints = saved(tmp_path)
    latest = checkpoints.latest()
    (latest / HASHES).unlink()
    state = torch.load(latest / "training.pt", weights_only=True)
    assert state["format"] == FORMAT
    torch.save({**state, "format": WITHOUT_HASHES}, latest / "training.pt")
    said = []
    assert checkpoints.whole(said.append) == latest
    assert said == [f"{latest} is from a version without hashes: it was not checked"]


def test_a_later_damaged_checkpoint_costs_no_whole_one(tmp_path):
    checkpoints = saved(tmp_path, keep=1)
    damaged = checkpoints.latest()
    lose(damaged)
    saved(tmp_path, steps=(4,), keep=1)
    assert checkpoints.whole(lambda line: None).name == "step-000004"
    assert damaged.exists()


@pytest.fixture
def stopped(finished, tmp_path):
    """A run that was killed after its last checkpoint."""
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    (out / "summary.json").unlink()
    return out


def test_a_run_goes_on_before_a_damaged_checkpoint_bit_for_bit(finished, stopped, inputs, capsys):
    flip(stopped / "checkpoints/step-000008/model.safetensors", 100_000)
    pretrain(options_of(inputs), stopped, resume=True)
    said = capsys.readouterr().err
    assert "step-000008 is damaged (model.safetensors is not what was written)" in said
    assert "resumed after step 6" in said
    assert_same_run(finished[0], stopped)


@pytest.mark.parametrize("damaged", ["{}", "not JSON", None])
def test_a_damaged_record_of_the_corpus_is_put_back(finished, stopped, inputs, capsys, damaged):
    record = stopped / "data.json"
    record.unlink()
    if damaged is not None:
        record.write_text(damaged)
    pretrain(options_of(inputs), stopped, resume=True)
    assert "data.json is not what step-000008 was made with: restored" in capsys.readouterr().err
    assert record.read_bytes() == (finished[0] / "data.json").read_bytes()


def test_options_that_changed_on_disk_are_not_gone_on_with(stopped, capsys):
    file = stopped / "pretrain.json"
    options = json.loads(file.read_text())
    file.write_text(json.dumps(options | {"learning_rate": 0.5, "keep_checkpoints": 9}))
    assert main(["pretrain", "--resume", "--out", str(stopped)]) == 2
    said = capsys.readouterr().err
    assert "is not what the run started with: --learning-rate 0.5 (was 0.001); " in said
    assert f"restore it from {stopped / 'checkpoints/step-000008/run/pretrain.json'}" in said


def test_options_that_are_unreadable_have_a_copy(stopped, inputs, capsys):
    (stopped / "pretrain.json").write_text("{")
    assert main(["pretrain", "--resume", *flags(inputs, out=str(stopped))]) == 2
    assert "is not JSON" in (said := capsys.readouterr().err)
    assert "; restore it from " in said


def test_a_damaged_summary_is_no_result(finished, tmp_path, inputs, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    file = out / "summary.json"
    file.write_text(file.read_text().replace('"steps": 8', '"steps": 9'))
    assert pretrain(options_of(inputs), out, resume=True)["steps"] == 8
    assert "summary.json is damaged: repeating the end of the run" in capsys.readouterr().err
    assert unsealed(file.read_bytes())["steps"] == 8

"""Pretraining from end to end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import spectra
from spectra.cli import main
from spectra.store.writer import StoreWriter
from spectra_pretrain import machine
from spectra_pretrain.optionfile import read_options
from spectra_pretrain.options import PretrainOptions
from spectra_pretrain.presets import model_config
from spectra_pretrain.run import pretrain
from spectra_pretrain.vocabulary import trained_vocabulary
from tests.modes import unusual_modes
from tests.pretrain.runs import SETTINGS, assert_same_run, flags, options_of


def test_a_run_leaves_what_the_design_says(finished, inputs):
    out, summary = finished
    assert summary["steps"] == 8
    assert summary["tokens"] == 8 * 4 * 32
    assert summary["validation_perplexity"] == pytest.approx(np.exp(summary["validation_loss"]))
    assert 0 < summary["recorder_share"] < 1
    assert summary["tokens_per_second"] > 0
    run = spectra.open(summary["store"])
    assert run["spectra"].step.values.tolist() == [0, 3, 6, 8]
    assert run["train"].sizes["train_step"] == 8
    assert np.isfinite(run["train"].validation_loss).values.nonzero()[0].tolist() == [3, 7]
    assert run.attrs["config"]["data"] == inputs["data"]
    assert spectra.verify(summary["store"]).whole
    assert [p.name for p in sorted((out / "checkpoints").iterdir())] == [
        "step-000006",
        "step-000008",
    ]
    assert json.loads((out / "data.json").read_text())["train_tokens"] > 0
    assert not unusual_modes(out)


def test_the_model_is_left_in_hugging_face_format(finished):
    out, summary = finished
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert len(tokenizer) == model.config.vocab_size == 300
    assert model.config.eos_token_id == tokenizer.eos_token_id
    weights = spectra.open(summary["store"])["spectra"].weight.isel(step=-1)
    name = "model.layers.1.mlp.down_proj"
    expected = torch.linalg.svdvals(model.get_submodule(name).weight.detach().double())
    np.testing.assert_allclose(weights.sel(matrix=name).values[:32], expected, rtol=1e-5)


def test_the_loss_falls(inputs, tmp_path):
    summary = pretrain(
        options_of(inputs, steps=60, eval_every=60, record_every=0), tmp_path / "run"
    )
    assert summary["validation_loss"] < 5.3 < np.log(300)
    assert summary["store"] is None
    assert not (tmp_path / "run/spectra.zarr").exists()


def test_the_saved_options_repeat_the_run(finished, tmp_path):
    out, _ = finished
    pretrain(read_options(out / "pretrain.json", PretrainOptions), tmp_path / "again")
    assert_same_run(out, tmp_path / "again")


def test_accumulated_gradients_are_those_of_the_whole_batch(inputs, tmp_path):
    precise = {"precision": "float32", "steps": 2, "record_every": 0}
    pretrain(options_of(inputs, **precise), tmp_path / "whole")
    pretrain(options_of(inputs, **precise, micro_batch_size=1), tmp_path / "parts")
    weights = [
        load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "parts")
    ]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-5)


def test_activation_checkpointing_changes_nothing_but_memory(finished, inputs, tmp_path):
    pretrain(options_of(inputs, activation_checkpointing=True), tmp_path / "run")
    assert_same_run(finished[0], tmp_path / "run")


def test_recording_changes_nothing(finished, inputs, tmp_path):
    pretrain(options_of(inputs, record_every=0), tmp_path / "run")
    weights = [load_file(p / "model/model.safetensors") for p in (finished[0], tmp_path / "run")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_json_prints_one_object_on_stdout(inputs, tmp_path, capsys):
    status = main(["pretrain", "--json", *flags(inputs, steps=2, out=str(tmp_path / "run"))])
    out, _ = capsys.readouterr()
    assert status == 0
    assert set(json.loads(out)) == {
        "steps",
        "tokens",
        "train_loss",
        "validation_loss",
        "validation_perplexity",
        "tokens_per_second",
        "recorder_share",
        "recorder_seconds",
        "recorder_left_out",
        "store",
        "evaluations",
        "step_tokens_per_second",
        "peak_memory_bytes",
        "recorder_stopped",
        "parameters",
        "trained_parameters",
        "weight_bytes",
        "gradient_bytes",
        "optimizer_bytes",
    }


def test_a_dry_run_says_everything_and_writes_nothing(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--dry-run", *flags(inputs, out=str(tmp_path / "run"))]) == 0
    said = capsys.readouterr().out
    assert '"batch_size": 4' in said
    for word in ("36,768 parameters", "128 tokens a step", "4 snapshots", "the store takes at most",
                 "a step takes", "a snapshot takes", "the run takes about"):  # fmt: skip
        assert word in said, said
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_and_keeps_what_it_chose(inputs, tmp_path, capsys, monkeypatch):
    # a preset's vocabulary, which so small a text does not carry
    (tmp_path / "model").mkdir()
    config = json.loads(Path(inputs["model"]).read_text()) | {"vocab_size": 32_000}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    given = inputs | {"model": str(tmp_path / "model")}
    monkeypatch.setattr(machine, "is_native", lambda device: False)
    out = tmp_path / "run"
    lines = (
        "fitted to the text and the blocks, instead of 32,000 (--vocab-size model keeps those)",
        "computes in float32: this CPU has no instructions for bfloat16",
    )
    assert main(["pretrain", "--dry-run", *flags(given, out=str(out))]) == 0
    said = capsys.readouterr().out
    expected = json.loads(said[: said.index("\n}") + 2])
    assert all(line in said for line in lines)
    assert main(["pretrain", *flags(given, out=str(out), steps=4, checkpoint_every=2)]) == 0
    said = capsys.readouterr().err
    assert all(line in said for line in lines)
    chosen = json.loads((out / "pretrain.json").read_text())
    assert chosen["precision"] == expected["precision"] == "float32"
    size = chosen["vocab_size"]
    assert 258 <= size == expected["vocab_size"] < 512
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert model.config.vocab_size == size == len(AutoTokenizer.from_pretrained(out / "model"))
    assert spectra.open(out / "spectra.zarr").attrs["config"]["vocab_size"] == size
    # on a machine that would choose otherwise
    monkeypatch.setattr(machine, "is_native", lambda device: True)
    shutil.rmtree(out / "checkpoints/step-000004")
    (out / "summary.json").unlink()
    pretrain(options_of(given, steps=4, checkpoint_every=2), out, resume=True)
    assert json.loads((out / "pretrain.json").read_text()) == chosen
    pretrain(read_options(out / "pretrain.json", PretrainOptions), tmp_path / "again")
    assert_same_run(out, tmp_path / "again")


def test_a_vocabulary_that_the_text_cannot_fill_is_said(inputs, tmp_path, capsys):
    given = ["--vocab-size", "90000", "--steps", "1", "--out", str(tmp_path / "run")]
    assert main(["pretrain", *flags(inputs, record_every=0), *given]) == 0
    assert "the text has too few words for 90,000" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/pretrain.json").read_text())["vocab_size"] == 90_000
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    assert model.config.vocab_size < 90_000


def test_a_slow_precision_is_said_before_the_run(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "is_native", lambda device: False)
    arguments = flags(inputs, precision="bfloat16", out=str(tmp_path / "run"))
    for command in (["pretrain", "--dry-run"], ["pretrain", "--dry-run", "--json"], ["pretrain"]):
        assert main([*command, *arguments]) == 0
        assert "--precision float32 needs more memory" in "".join(capsys.readouterr())


def test_the_embedding_of_a_preset_does_not_outweigh_its_blocks_on_a_small_text():
    for name in ("llama_9m", "llama_60m", "llama_7b"):
        rule = trained_vocabulary(PretrainOptions(model=name))
        small, large = rule.size(8_000_000), rule.size(64_000_000)
        config = model_config(name)
        block = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
        assert 2 * small * config.hidden_size <= config.num_hidden_layers * block
        assert large == 32_000


def test_a_config_file_and_the_options_given_are_checked_together(inputs, tmp_path):
    saved = tmp_path / "options.json"
    saved.write_text(json.dumps(SETTINGS | inputs | {"batch_size": 6, "steps": 1}))
    arguments = ["pretrain", "--config", str(saved), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--micro-batch-size", "3"]) == 0
    assert read_options(tmp_path / "run/pretrain.json", PretrainOptions).batch.micro_batch_size == 3


def test_a_recorder_that_gave_up_is_said_at_the_end(inputs, tmp_path, monkeypatch, capsys):
    original = StoreWriter.write_snapshot

    def full(self, step, arrays):
        if step > 3:
            raise OSError(28, "No space left on device")
        original(self, step, arrays)

    monkeypatch.setattr(StoreWriter, "write_snapshot", full)
    out = tmp_path / "run"
    with pytest.warns(RuntimeWarning, match="No space left"):
        status = main(["pretrain", *flags(inputs, out=str(out))])
    assert status == 1
    assert "recording stopped at step 6" in capsys.readouterr().err.splitlines()[-1]
    assert "at step 6" in json.loads((out / "summary.json").read_text())["recorder_stopped"]
    assert spectra.verify(out / "spectra.zarr").whole
    assert (out / "model").exists()


@pytest.mark.slow
def test_a_compiled_run_is_the_same_up_to_rounding(inputs, tmp_path):
    precise = {"precision": "float32", "steps": 4}
    for name, compiled in (("eager", False), ("compiled", True)):
        pretrain(options_of(inputs, **precise, compile=compiled), tmp_path / name)
    runs = [spectra.open(tmp_path / name / "spectra.zarr") for name in ("eager", "compiled")]
    assert runs[1]["spectra"].matrix.values.tolist() == runs[0]["spectra"].matrix.values.tolist()
    for name in ("weight", "gradient"):
        np.testing.assert_allclose(
            runs[1]["spectra"][name], runs[0]["spectra"][name], rtol=1e-2, atol=1e-5
        )


def test_a_given_tokenizer_sets_the_vocabulary(inputs, shared, tmp_path):
    tokenizer = str(shared / "data/checkpoints/stories260K")
    pretrain(options_of(inputs, tokenizer=tokenizer, steps=1), tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    assert model.config.vocab_size == 512

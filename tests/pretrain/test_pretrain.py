"""Pretraining from end to end, interrupted and resumed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import spectra
from data.errors import InputError
from pretrain.checkpoint import Checkpoints
from pretrain.finiteness import NonFiniteError, first_non_finite
from pretrain.lock import locked
from pretrain.options import PretrainOptions, from_dict, read_options
from pretrain.run import pretrain
from spectra.cli import main
from spectra.store.writer import StoreWriter
from tests.small import small_llama

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "vocab_size": 300,
    "model_type": "llama",
}
SETTINGS = {
    "steps": 8,
    "seq_len": 32,
    "batch_size": 4,
    "record_every": 3,
    "probe_size": 2,
    "sketch": 64,
    "eval_every": 4,
    "eval_tokens": 256,
    "checkpoint_every": 3,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, shared) -> dict[str, str]:
    """A corpus of a few hundred paragraphs and a model of two layers."""
    folder = tmp_path_factory.mktemp("inputs")
    lines = (shared / "data/text/wikitext2-valid.txt").read_text().splitlines()
    with (folder / "corpus.jsonl").open("w") as f:
        f.writelines(json.dumps({"text": line}) + "\n" for line in lines[:400] if line.strip())
    (folder / "config.json").write_text(json.dumps(TINY))
    return {"model": str(folder / "config.json"), "data": str(folder / "corpus.jsonl")}


def options_of(inputs, **changes) -> PretrainOptions:
    return from_dict(SETTINGS | inputs | changes, "test")


def flags(inputs, **changes) -> list[str]:
    values = SETTINGS | inputs | changes
    return [part for k, v in values.items() for part in (f"--{k.replace('_', '-')}", str(v))]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """A run that nothing interrupted: its folder and its summary."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, pretrain(options_of(inputs), out)


def assert_same_run(one: Path, other: Path):
    """Bit for bit: weights, optimizer, random state, and every array of the store."""
    last = {path: Checkpoints(path / "checkpoints").latest() for path in (one, other)}
    first, second = (load_file(last[path] / "model.safetensors") for path in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    states = [torch.load(last[path] / "training.pt", weights_only=True) for path in (one, other)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    runs = [spectra.open(path / "spectra.zarr") for path in (one, other)]
    for group in ("spectra", "sketches", "train"):
        for name, array in runs[0][group].data_vars.items():
            if name != "tokens_per_second":
                np.testing.assert_array_equal(runs[1][group][name], array, err_msg=name)


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
    pretrain(read_options(out / "pretrain.json"), tmp_path / "again")
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


def interrupt(inputs, out, number, after):
    """Start a run in another process and send it a signal once so many snapshots are there."""
    arguments = flags(inputs, steps=300, checkpoint_every=7, out=str(out))
    process = subprocess.Popen(
        [sys.executable, "-m", "spectra.cli", "pretrain", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        begun = (out / "spectra.zarr").exists() and (out / "checkpoints/step-000007").exists()
        if begun and spectra.open(out / "spectra.zarr")["spectra"].sizes["step"] >= after:
            break
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.fixture(scope="module")
def long_run(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("long") / "run"
    pretrain(options_of(inputs, steps=300, checkpoint_every=7), out)
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_resumes_bit_for_bit(inputs, long_run, tmp_path, number):
    out = tmp_path / "run"
    status, errors = interrupt(inputs, out, number, after=5)
    if number == signal.SIGKILL:
        assert status == -signal.SIGKILL
    else:
        assert status == 128 + number
        assert "checkpoint saved; go on by " in errors
        assert "Traceback" not in errors
        step = int(errors.split("stopped after step ")[1].split()[0])
        assert (out / f"checkpoints/step-{step:06d}").exists()
    assert spectra.verify(out / "spectra.zarr").whole
    assert not (out / "model").exists()
    assert main(["pretrain", "--resume", "--out", str(out)]) == 0
    assert_same_run(long_run, out)


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


def test_a_run_is_not_written_over(finished, inputs):
    with pytest.raises(InputError, match="holds a run already: add --resume"):
        pretrain(options_of(inputs), finished[0])


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


def test_a_loss_that_is_not_finite_stops_with_step_and_place(inputs, tmp_path, monkeypatch, capsys):
    options = options_of(inputs)
    from pretrain import run

    original = run._new_model

    def broken(*args):
        model = original(*args)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
        return model

    monkeypatch.setattr(run, "_new_model", broken)
    with pytest.raises(
        NonFiniteError,
        match=r"step 1: the loss is nan; the weight model\.layers\.1\.mlp\.up_proj\.weight is not",
    ):
        pretrain(options, tmp_path / "run")
    assert not list(tmp_path.glob("run/checkpoints/*"))
    status = main(["pretrain", *flags(inputs, out=str(tmp_path / "cli"))])
    assert status == 1
    assert "That step was not made; try a lower --learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(("micro", "row"), [(4, 0), (1, 3)])
def test_a_loss_that_overflows_names_the_layer_whose_output_does(micro, row):
    """Token 5 alone drives one layer's activation to infinity; it is in one window of four."""
    model = small_llama()
    seen = []
    model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0] == 5).any().item())
    )
    model.model.layers[1].mlp.act_fn.register_forward_hook(
        lambda module, inputs, output: output * torch.inf if seen[-1] else output
    )
    batch = torch.zeros(4, 8, dtype=torch.long)
    batch[row] = 5
    place = first_non_finite(model, torch.split(batch, micro), loss_is_finite=False)
    assert place == "the output of model.layers.1.mlp.act_fn is not finite"


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_names_its_matrix(inputs, tmp_path, monkeypatch, clip, value):
    from pretrain import run

    original = run._new_model

    def broken(*args):
        model = original(*args)
        weight = model.model.layers[1].mlp.up_proj.weight
        weight.register_hook(lambda gradient: torch.full_like(gradient, value))
        return model

    monkeypatch.setattr(run, "_new_model", broken)
    place = r"the gradient of model\.layers\.1\.mlp\.up_proj\.weight is not finite"
    with pytest.raises(NonFiniteError, match=place):
        pretrain(options_of(inputs, clip=clip, record_every=0), tmp_path / "run")


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
        "store",
        "recorder_stopped",
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "/nowhere"}, "no such file or folder: /nowhere"),
        ({"data": "x" * 5000}, "no such file or folder"),
        ({"seq_len": 1_000_000}, "the training part of the corpus has"),
        ({"clip": "nan"}, "--clip is a number, not nan"),
        ({"learning_rate": "inf"}, "--learning-rate is a number, not inf"),
        ({"beta1": 1.0}, "--beta1 and --beta2 are below 1"),
        ({"max_tokens": -5}, "--max-tokens is at least 1, not -5"),
        ({"device": "meta"}, "--device meta cannot be used here"),
        ({"device": "cuda:99"}, "--device cuda:99 cannot be used here"),
        ({"data": ""}, "this one is empty"),
        ({"data": "/dev/null"}, "/dev/null is neither a file nor a folder"),
        ({"tokenizer": "/nowhere", "vocab_size": 300}, "--vocab-size goes with --tokenizer train"),
        ({"tokenizer": "/nowhere"}, "cannot load the tokenizer '/nowhere'"),
        ({"vocab_size": 10}, "at least 258 tokens, not 10"),
    ],
)
def test_what_cannot_be_done_says_so_in_one_line(inputs, tmp_path, capsys, changes, message):
    assert main(["pretrain", *flags(inputs, **changes, out=str(tmp_path / "run"))]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last


def test_a_config_file_and_the_options_given_are_checked_together(inputs, tmp_path):
    saved = tmp_path / "options.json"
    saved.write_text(json.dumps(SETTINGS | inputs | {"batch_size": 6, "steps": 1}))
    arguments = ["pretrain", "--config", str(saved), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--micro-batch-size", "3"]) == 0
    assert read_options(tmp_path / "run/pretrain.json").batch.micro_batch_size == 3


@pytest.mark.parametrize("model_type", ["vit", "t5"])
def test_a_model_that_is_no_causal_language_model_says_so(inputs, tmp_path, capsys, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    changes = {"model": str(tmp_path), "out": str(tmp_path / "run")}
    assert main(["pretrain", *flags(inputs, **changes)]) == 2
    assert "no causal language model of" in capsys.readouterr().err


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


def test_two_processes_do_not_write_one_run(inputs, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with locked(out), pytest.raises(InputError, match="another process is writing to"):
        pretrain(options_of(inputs), out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("spectra.zarr", "has lost its spectra.zarr"),
        ("pretrain.json", "has lost its pretrain.json"),
        ("data.json", "does not say which tokens"),
        ("checkpoints/step-000008/model.safetensors", "cannot be read .*: remove it"),
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


def test_a_model_that_sees_later_tokens_is_refused(inputs, tmp_path):
    fields = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4}
    fields |= {"num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 300}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match="its predictions see later tokens"):
        pretrain(options_of(inputs, model=str(tmp_path)), tmp_path / "run")


def test_several_processes_are_refused_before_they_write(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        pretrain(options_of(inputs), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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


def test_checkpoints_keep_the_latest_and_leave_no_parts(finished, inputs):
    out, _ = finished
    options = options_of(inputs)
    assert len(list((out / "checkpoints").iterdir())) == options.checkpoints.keep_checkpoints
    assert Checkpoints(out / "nowhere").latest() is None

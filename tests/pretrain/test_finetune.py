"""Finetuning: what is trained changes, nothing else does, and what is saved is what was trained."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file

import spectra
from spectra.allocation.allocate import allocate
from spectra.checkpoint.spectra_config import SpectraConfig
from spectra.cli import main
from spectra.compression.compress import compress
from spectra.models.loading import load_whole
from spectra.scanning.scan import scan
from spectra_data.errors import InputError
from spectra_pretrain.checkpoint import Checkpoints
from spectra_pretrain.finetuning import run as finetuning
from spectra_pretrain.finetuning.base_model import BaseModel
from spectra_pretrain.finetuning.options import TeacherOptions
from spectra_pretrain.finetuning.run import Finetuning, finetune
from spectra_pretrain.loop import Training
from spectra_pretrain.memory import total
from spectra_pretrain.session import Console
from spectra_pretrain.trainee import make_trainee
from tests.modes import unusual_modes
from tests.pretrain.tuned import loss_of, tuned

PEFT = {
    "adalora": {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1},
    "pissa": {"peft_type": "LORA", "r": 2, "init_lora_weights": "pissa"},
    "olora": {"peft_type": "LORA", "r": 2, "init_lora_weights": "olora"},
    "randlora": {"peft_type": "RANDLORA", "r": 2},
    "miss": {"peft_type": "MISS", "r": 2, "target_modules": ["o_proj", "up_proj"]},
    "osf": {"peft_type": "OSF", "target_modules": ["o_proj", "up_proj"]},
}


@pytest.fixture(scope="module")
def rank_map(shared, tmp_path_factory):
    stories = str(shared / "data/checkpoints/stories260K")
    return allocate(scan(stories, tmp_path_factory.mktemp("scan") / "s.zarr"), err=0.5)


@pytest.fixture(scope="module")
def checkpoints(shared, rank_map, tmp_path_factory):
    """The same model compressed in both ways, by storage, and the dense one."""
    stories = str(shared / "data/checkpoints/stories260K")
    folder = tmp_path_factory.mktemp("compressed")
    for storage in ("factors", "pivoted"):
        compress(stories, rank_map, folder / storage, storage=storage, dtype="float32")
    return {s: str(folder / s) for s in ("factors", "pivoted")} | {"dense": stories}


def config_file(folder, name) -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(PEFT[name]))
    return str(path)


def validation_of(options, out):
    """The run's own validation batches."""
    job = Finetuning(options)
    return job.prepare(None, out, torch.device("cpu"), Console(quiet=True)).training._validation


@pytest.mark.parametrize(
    ("storage", "train"),
    [
        *(("factors", train) for train in ("lrc", "full", "galore", "lora")),
        *(("pivoted", train) for train in ("nlrc", "dora")),
        *(pytest.param("factors", train, marks=pytest.mark.slow) for train in ("nlrc", "dora")),
        *(
            pytest.param("pivoted", train, marks=pytest.mark.slow)
            for train in ("lrc", "full", "galore", "lora")
        ),
    ],
)
def test_the_saved_checkpoint_is_what_was_trained(checkpoints, inputs, tmp_path, storage, train):
    base = checkpoints[storage]
    options = tuned(base, inputs["data"], train=train)
    summary = finetune(options, tmp_path / "run")
    assert not unusual_modes(tmp_path / "run")
    found = loss_of(tmp_path / "run/model", validation_of(options, tmp_path / "again"))
    assert found == pytest.approx(summary["validation_loss"], rel=1e-4)
    assert summary["evaluations"][0]["validation_loss"] > summary["validation_loss"]
    before = load_file(f"{base}/model.safetensors")
    after = load_file(tmp_path / "run/model/model.safetensors")
    assert before.keys() == after.keys()
    before = {name: value for name, value in before.items() if value.numel()}  # no guards
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    lrc = {m.name for m in SpectraConfig.of(BaseModel(base).model().config.to_dict()).rank_map.lrc}
    kinds = {
        "lrc": lambda n: n.rpartition(".")[0] in lrc,
        "nlrc": lambda n: n.rpartition(".")[0] not in lrc and "_proj" in n,
        "lora": lambda n: "_proj" in n,
        "dora": lambda n: "_proj" in n,
    }
    wanted = kinds.get(train, lambda n: True)
    assert {n for n in changed if "norm" not in n} == {
        n for n in before if wanted(n) and "norm" not in n and not n.endswith("order")
    }
    assert any("norm" in name for name in changed) == (train not in ("lora", "dora"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("adalora", "olora", "osf") else pytest.mark.slow)
        for name in sorted(PEFT)
    ],
)
def test_any_adapter_of_peft_is_trained_and_merged(checkpoints, inputs, tmp_path, name):
    options = tuned(checkpoints["factors"], inputs["data"], train=config_file(tmp_path, name))
    summary = finetune(options, tmp_path / "run")
    assert summary["trained_parameters"] > 0
    found = loss_of(tmp_path / "run/model", validation_of(options, tmp_path / "again"))
    assert found == pytest.approx(summary["validation_loss"], rel=1e-3)
    assert SpectraConfig.of(json.loads((tmp_path / "run/model/config.json").read_text()))


@pytest.mark.parametrize(
    "how",
    [
        "lrc",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("task", "galore", "adalora", "stochastic", "teacher", "dropout", "olora")
        ),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(checkpoints, inputs, tmp_path, monkeypatch, how, shared):
    if how in PEFT:
        changes = {"train": config_file(tmp_path, how)}
    else:
        changes = {
            "lrc": {},
            "galore": {"train": "galore", "galore_projection": "randomized"},
            "stochastic": {"masters": "bfloat16", "precision": "bfloat16"},
            "dropout": {"train": "lora", "lora_dropout": 0.5},
            "teacher": {"teacher": checkpoints["dense"]},
            "task": {"task": "coinflip", "task_data": str(shared / "data/tasks"), "questions": 2},
        }[how]
    changes |= {"seq_len": 256} if how == "task" else {}
    options = tuned(checkpoints["factors"], inputs["data"], record_every=2, **changes)
    finetune(options, tmp_path / "whole")
    original = Training.train_step

    def killed(self, recorder):
        if self.step == 3:
            raise KeyboardInterrupt
        return original(self, recorder)

    monkeypatch.setattr(Training, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        finetune(options, tmp_path / "cut")
    monkeypatch.setattr(Training, "train_step", original)
    finetune(options, tmp_path / "cut", resume=True)
    last = [Checkpoints(tmp_path / f / "checkpoints").latest() for f in ("whole", "cut")]
    one, other = (load_file(folder / "trained.safetensors") for folder in last)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    states = [torch.load(folder / "training.pt", weights_only=True) for folder in last]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    runs = [spectra.open(tmp_path / f / "spectra.zarr")["spectra"] for f in ("whole", "cut")]
    assert runs[0].equals(runs[1])


@pytest.mark.parametrize("train", ["lrc", "lora", "pissa"])
def test_an_adapter_is_loaded_like_a_checkpoint(checkpoints, inputs, tmp_path, train, capsys):
    how = config_file(tmp_path, train) if train in PEFT else train
    options = tuned(checkpoints["pivoted"], inputs["data"], train=how, save="adapter")
    summary = finetune(options, tmp_path / "run")
    assert not (tmp_path / "run/model").exists()
    adapter = tmp_path / "run/adapter"
    assert loss_of(adapter, validation_of(options, tmp_path / "again")) == pytest.approx(
        summary["validation_loss"], rel=1e-3
    )
    arguments = ["merge", str(adapter), "--out", str(tmp_path / "merged"), "--compressed"]
    assert main(arguments) == 0
    assert not unusual_modes(tmp_path / "run")
    assert not unusual_modes(tmp_path / "merged")
    merged = load_whole(str(tmp_path / "merged")).model.state_dict()
    expected = load_whole(str(adapter)).model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, msg=name)
    assert main(["merge", str(adapter), "--out", str(tmp_path / "dense")]) == 0
    dense = load_whole(str(tmp_path / "dense")).model
    ids = torch.arange(16)[None]
    torch.testing.assert_close(
        dense(ids).logits, load_whole(str(adapter)).model(ids).logits, rtol=1e-3, atol=1e-3
    )


def test_an_adapter_moves_with_its_base(checkpoints, inputs, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(checkpoints["factors"], here / "base")
    finetune(tuned(here / "base", inputs["data"], save="adapter"), here / "run")
    before = load_whole(str(here / "run/adapter")).model.state_dict()
    here.rename(there)
    after = load_whole(str(there / "run/adapter")).model.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    copied = tmp_path / "copied"
    shutil.copytree(there, copied, copy_function=shutil.copy)  # with new times
    (there / "base").rename(there / "other")
    again = load_whole(str(copied / "run/adapter")).model.state_dict()
    assert all(torch.equal(before[name], value) for name, value in again.items())
    with pytest.raises(InputError, match="or write its new"):
        load_whole(str(there / "run/adapter"))


def test_an_adapter_whose_base_has_changed_is_refused(checkpoints, inputs, tmp_path):
    base = tmp_path / "base"
    compress(checkpoints["dense"], None, base, budget=0.8, method="svd")
    finetune(tuned(base, inputs["data"], train="full", save="adapter"), tmp_path / "run")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"bos_token_id": 7}))
    with pytest.raises(InputError, match="no longer the checkpoint"):
        load_whole(str(tmp_path / "run/adapter"))


@pytest.mark.parametrize("train", ["lrc", "full", "galore", "lora"])
def test_the_table_counts_what_the_optimizer_holds(checkpoints, inputs, train):
    options = tuned(checkpoints["factors"], inputs["data"], train=train)
    base = BaseModel(options.checkpoint)
    trainee = make_trainee(options, base.model(), base.rank_map)
    groups = trainee.groups(options)
    optimizer = trainee.optimizer(options)
    trainee.model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    held = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    )
    gradients = [p.grad for p in trainee.model.parameters() if p.grad is not None]
    trained = total(groups, trained=True)
    assert trained.optimizer_bytes == held
    assert trained.gradient_bytes == sum(g.numel() * g.element_size() for g in gradients)


def test_frozen_matrices_are_bfloat16_and_trained_ones_float32(checkpoints, inputs):
    options = tuned(checkpoints["factors"], inputs["data"], precision="bfloat16")
    base = BaseModel(options.checkpoint)
    model = make_trainee(options, base.model(), base.rank_map).model
    for name, parameter in model.named_parameters():
        wide = parameter.requires_grad or parameter.ndim == 1
        assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), name


def test_norms_follow_their_option(checkpoints, inputs):
    base = BaseModel(checkpoints["factors"])
    for norms, trained in (("auto", True), ("train", True), ("freeze", False)):
        options = tuned(base.address, inputs["data"], norms=norms)
        model = make_trainee(options, base.model(), base.rank_map).model
        assert model.model.norm.weight.requires_grad == trained


def test_the_rank_map_travels_with_the_recording(checkpoints, inputs, tmp_path):
    options = tuned(checkpoints["pivoted"], inputs["data"], record_every=2)
    summary = finetune(options, tmp_path / "run")
    run = spectra.open(summary["store"])
    modules = {m["name"]: m["kind"] for m in run.attrs["rank_map"]["modules"]}
    assert set(run["spectra"].matrix.values) == set(modules)
    lrc = [name for name, kind in modules.items() if kind == "LRC"]
    last = run["spectra"].isel(step=-1)
    assert (last["update"].sel(matrix=lrc).isel(index=0) > 0).all()
    assert (last.gradient.isel(index=0) > 0).all()


def test_finetuning_learns_from_a_teacher(checkpoints, inputs, tmp_path):
    teacher = checkpoints["dense"]
    options = tuned(checkpoints["factors"], inputs["data"], teacher=teacher, distill_weight=1.0)
    summary = finetune(options, tmp_path / "run")
    losses = [e["validation_loss"] for e in summary["evaluations"]]
    assert losses[-1] < losses[0]
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(InputError, match="has another tokenizer"):
        finetune(replace(options, distillation=TeacherOptions(str(other))), tmp_path / "two")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "some"}, "--train is one of"),
        ({"train": "lora", "norms": "train"}, "adapters freeze the norms"),
        ({"train": "full", "norms": "freeze"}, "trains everything"),
        ({"masters": "bfloat16"}, "goes with --precision bfloat16"),
        ({"distill_weight": 0.0}, "--distill-weight"),
        ({"train": "galore", "galore_rank": 0}, "--galore-rank is at least 1"),
        ({"lora_rank": 3}, "--lora-rank goes with --train lora or dora: leave it out"),
        ({"train": "full", "galore_every": 3}, "--galore-every goes with --optimizer galore"),
        ({"temperature": 3.0}, "--temperature goes with --teacher"),
        ({"questions": 3}, "--questions goes with --task"),
        ({"task": "date", "max_tokens": 3000}, "--max-tokens goes with text"),
        ({"save": "adapter", "save_dtype": "float16"}, "--save-dtype goes with --save checkpoint"),
        ({"train": "missing.json"}, "cannot read missing.json"),
        ({"seq_len": 1024}, "the model accepts 512 tokens"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(checkpoints, inputs, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        finetune(tuned(checkpoints["factors"], inputs["data"], **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dense_checkpoint_has_no_lrcs_and_says_so(checkpoints, inputs, tmp_path):
    with pytest.raises(InputError, match="needs a rank map"):
        finetune(tuned(checkpoints["dense"], inputs["data"]), tmp_path / "run")
    summary = finetune(tuned(checkpoints["dense"], inputs["data"], train="lora"), tmp_path / "lora")
    assert summary["validation_loss"] < summary["evaluations"][0]["validation_loss"]


def test_peft_configurations_may_name_matrices(checkpoints, inputs, tmp_path):
    path = tmp_path / "own.json"
    fields = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "o_proj"]}
    path.write_text(json.dumps(fields | {"rank_pattern": {"layers.0.self_attn.q_proj": 3}}))
    options = tuned(checkpoints["factors"], inputs["data"], train=str(path))
    base = BaseModel(options.checkpoint)
    model = make_trainee(options, base.model(), base.rank_map).model
    ranks = {n: p.shape[0] for n, p in model.named_parameters() if "lora_A" in n}
    assert {n.split(".lora_A")[0].split("self_attn.")[1].split(".")[0] for n in ranks} == {
        "q_proj", "o_proj",
    }  # fmt: skip
    assert {r for n, r in ranks.items() if "layers.0.self_attn.q_proj" in n} == {3}
    path.write_text(json.dumps(fields | {"rank_pattern": {"nothing": 3}}))
    with pytest.raises(InputError, match="which is not a target"):
        make_trainee(options, base.model(), base.rank_map)
    # as peft itself writes it
    path.write_text(json.dumps(fields | {"inference_mode": True}))
    model = make_trainee(options, base.model(), base.rank_map).model
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_a_teacher_may_have_more_rows_than_its_tokenizer_has_tokens(checkpoints, inputs, tmp_path):
    teacher = tmp_path / "teacher"
    model = load_whole(checkpoints["dense"]).model
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(teacher)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{checkpoints['dense']}/{name}", teacher)
    runs = [
        finetune(tuned(checkpoints["factors"], inputs["data"], teacher=str(one)), tmp_path / name)
        for name, one in (("padded", teacher), ("plain", checkpoints["dense"]))
    ]
    assert runs[0]["validation_loss"] == pytest.approx(runs[1]["validation_loss"], rel=1e-5)
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    with pytest.raises(InputError, match="the teacher accepts 16 tokens"):
        finetune(
            tuned(checkpoints["factors"], inputs["data"], teacher=str(teacher)), tmp_path / "short"
        )


def test_adapters_need_linear_layers(tmp_path, inputs):
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(InputError, match="this model has none"):
        make_trainee(tuned("any", inputs["data"], train="lora"), model, None)


def coin_flips(base, shared) -> list[str]:
    """A command that finetunes for a task."""
    data = ["--task", "coinflip", "--task-data", str(shared / "data/tasks"), "--seq-len", "256"]
    how = ["--batch-size", "2", "--precision", "float32", "--record-every", "0"]
    return ["finetune", base, *data, *how]


def test_a_dry_run_of_a_task_measures_its_questions(checkpoints, shared, tmp_path, capsys):
    arguments = coin_flips(checkpoints["factors"], shared)
    assert main([*arguments, "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "batch 2 questions of at most 256 tokens; 500 steps" in said
    assert "questions to train on" in said
    assert main([*arguments, "--out", str(tmp_path / "run"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] is None
    assert found["tokens_per_second"] * found["step_seconds"] < 2 * 256
    assert not (tmp_path / "run").exists()


def test_ctrl_c_while_it_is_tested_loses_nothing(
    checkpoints, shared, tmp_path, monkeypatch, capsys
):
    arguments = coin_flips(checkpoints["factors"], shared)
    arguments += ["--questions", "2", "--steps", "2", "--out", str(tmp_path / "run")]

    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(finetuning, "ask", interrupted)
    assert main(arguments) == 130
    assert "stopped after the last step by SIGINT, checkpoint saved" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*arguments, "--resume"]) == 0
    said = capsys.readouterr()
    assert "coinflip: accuracy" in said.out
    assert "testing on coinflip: 2 of 2 questions" in said.err


def test_the_command_prints_one_object_and_a_dry_run_writes_nothing(
    checkpoints, inputs, tmp_path, capsys
):
    arguments = ["finetune", checkpoints["factors"], "--data", inputs["data"], "--steps", "2"]
    arguments += ["--seq-len", "32", "--record-every", "0", "--out", str(tmp_path / "run")]
    assert main([*arguments, "--dry-run", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["trained_parameters"] > 0
    assert figures["groups"][0]["name"] == "LRCs"
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {"steps", "tokens", "train_loss", "validation_loss", "validation_perplexity"} < set(
        summary
    )
    assert {"tokens_per_second", "recorder_share", "store"} < set(summary)
    assert main(["finetune", "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert main(["finetune"]) == 2
    assert "name the CHECKPOINT" in capsys.readouterr().err


def test_trained_weights_are_rounded_once_to_the_dtype_that_is_asked_for(
    checkpoints, inputs, tmp_path
):
    base = tmp_path / "short"
    compress(checkpoints["dense"], None, base, budget=0.9, method="svd", dtype="bfloat16")
    options = tuned(base, inputs["data"], train="full")
    finetune(options, tmp_path / "run")
    last = Checkpoints(tmp_path / "run/checkpoints").latest()
    trained = load_file(last / "trained.safetensors")
    saved = load_file(tmp_path / "run/model/model.safetensors")
    assert all(torch.equal(saved[name], v) for name, v in trained.items())


def test_a_configuration_chooses_layers_and_leaves_matrices_out(checkpoints, inputs, tmp_path):
    path = tmp_path / "own.json"
    fields = {"peft_type": "LORA", "r": 2, "layers_to_transform": [0]}
    path.write_text(json.dumps(fields | {"exclude_modules": ["q_proj", "gate_proj"]}))
    options = tuned(checkpoints["factors"], inputs["data"], train=str(path))
    base = BaseModel(options.checkpoint)
    model = make_trainee(options, base.model(), base.rank_map).model
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names
    assert all(".layers.0." in name for name in names)
    assert not any("q_proj" in name or "gate_proj" in name for name in names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LORA", "target_modules": "q_proj("}, "not a peft configuration"),
        ({"peft_type": "LORA", "target_modules": 5}, "not a peft configuration"),
        ({"peft_type": "LORA", "rank_pattern": [1]}, "not a peft configuration"),
        ({"peft_type": "NOTHING"}, "not a peft configuration"),
        ({"r": 2}, "it has no peft_type"),
        ({"peft_type": "LOHA", "r": 2, "modules_to_save": ["norm"]}, "plain LoRA and DoRA only"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "trains prompts"),
        ({"peft_type": "LN_TUNING"}, "trains no linear layers"),
        ({"peft_type": "LILY", "r": 2}, "adapters of LILY cannot be merged"),
        ({"peft_type": "LORA", "r": 2, "lora_bias": True}, "cannot be merged into this model"),
        ({"peft_type": "LORA", "r": 2, "init_lora_weights": "eva"}, "needs data, which is not"),
    ],
)
def test_configurations_that_cannot_be_are_refused(checkpoints, inputs, tmp_path, fields, message):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(fields))
    options = tuned(checkpoints["factors"], inputs["data"], train=str(path))
    base = BaseModel(options.checkpoint)
    with pytest.raises(InputError, match=message):
        make_trainee(options, base.model(), base.rank_map)


def test_a_resumed_run_has_the_configuration_that_it_began_with(checkpoints, inputs, tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    options = tuned(checkpoints["factors"], inputs["data"], train=str(path))
    finetune(options, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    path.write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 800}))
    with pytest.raises(InputError, match="no longer what"):
        finetune(options, tmp_path / "run", resume=True)


def test_a_run_goes_on_with_copies_of_its_checkpoints_alone(checkpoints, inputs, tmp_path):
    base, teacher = tmp_path / "base", tmp_path / "teacher"
    shutil.copytree(checkpoints["factors"], base)
    shutil.copytree(checkpoints["dense"], teacher)
    options = tuned(base, inputs["data"], teacher=str(teacher))
    first = finetune(options, tmp_path / "run")

    def again() -> dict:
        (tmp_path / "run/summary.json").unlink(missing_ok=True)
        return finetune(options, tmp_path / "run", resume=True)

    for place in (base, teacher):  # moved to another machine, say
        shutil.move(place, tmp_path / "old")
        shutil.copytree(tmp_path / "old", place, copy_function=shutil.copy)
        shutil.rmtree(tmp_path / "old")
        assert again()["validation_loss"] == first["validation_loss"]
    for place, name in ((teacher, "teacher"), (base, "checkpoint")):
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | {"bos_token_id": 7}))
        with pytest.raises(InputError, match=f"the {name} .* is no longer what"):
            again()


def test_what_is_damaged_says_so_and_is_made_again(checkpoints, inputs, tmp_path, capsys):
    options = tuned(checkpoints["factors"], inputs["data"], train="lora", save="adapter")
    finetune(options, tmp_path / "run")
    file = tmp_path / "run/adapter/adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    with pytest.raises(InputError, match="is not what was written"):
        load_whole(str(tmp_path / "run/adapter"))
    held = Checkpoints(tmp_path / "run/checkpoints").latest() / "trained.safetensors"
    held.write_bytes(held.read_bytes()[:200])
    (tmp_path / "run/summary.json").unlink()
    finetune(options, tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert "(trained.safetensors is not what was written): resuming from step-000002" in said
    assert file.read_bytes() == content

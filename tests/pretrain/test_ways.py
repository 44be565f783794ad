"""Ways of training: what is trained and how it is optimised are two choices, in both commands."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import spectra
from spectra.registry import Entry, Registry
from spectra_data.errors import InputError
from spectra_pretrain import command
from spectra_pretrain.checkpoint import Checkpoints
from spectra_pretrain.optimizers import choice, registry
from spectra_pretrain.optimizers.combined import CombinedOptimizer
from spectra_pretrain.optimizers.registry import OPTIMIZERS, OptimizerKind
from spectra_pretrain.options import PretrainOptions
from spectra_pretrain.run import pretrain
from spectra_pretrain.schedule import factor, scheduled
from tests.pretrain.runs import options_of
from tests.small import small_llama

SHORT = {"steps": 6, "checkpoint_every": 3, "record_every": 3, "precision": "float32"}
GALORE = {"optimizer": "galore", "galore_rank": 4, "galore_every": 2}


def cut(finished, out):
    """A finished run as it was after its last checkpoint but one."""
    shutil.copytree(finished, out)
    shutil.rmtree(Checkpoints(out / "checkpoints").latest())
    shutil.rmtree(out / "model")
    (out / "summary.json").unlink()


@pytest.mark.parametrize("way", [GALORE, {"train": "lora", "lora_rank": 4}], ids=["galore", "lora"])
def test_pretraining_in_any_way_resumes_bit_for_bit(inputs, tmp_path, way):
    options = options_of(inputs, **SHORT, **way)
    summary = pretrain(options, tmp_path / "whole")
    assert summary["validation_loss"] < summary["evaluations"][0]["validation_loss"]
    cut(tmp_path / "whole", tmp_path / "cut")
    pretrain(options, tmp_path / "cut", resume=True)
    models = [load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    last = [Checkpoints(tmp_path / n / "checkpoints").latest() for n in ("whole", "cut")]
    states = [torch.load(path / "training.pt", weights_only=True) for path in last]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_adapters_of_a_new_model_are_merged_into_it(inputs, tmp_path):
    pretrain(options_of(inputs, **SHORT, train="lora"), tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    described = spectra.open(tmp_path / "run/spectra.zarr").attrs
    assert (described["train"], described["optimizer"]) == ("lora", "adamw")


def test_a_rank_map_says_which_matrices_of_a_new_model_are_trained(inputs, tmp_path):
    pretrain(options_of(inputs, **SHORT), tmp_path / "first")
    path = tmp_path / "map.json"
    rank_map = spectra.allocate(spectra.open(tmp_path / "first/spectra.zarr"), err=0.5)
    rank_map.save(path)
    assert 0 < len(rank_map.lrc) < len(rank_map.modules)
    way = {"train": "lrc", "norms": "freeze", "map": str(path), **GALORE}
    pretrain(options_of(inputs, **SHORT, **way), tmp_path / "run")
    first = pretrain(options_of(inputs, **SHORT | {"steps": 1}, **way), tmp_path / "one")
    assert first["trained_parameters"] == sum(m.rows * m.cols for m in rank_map.lrc)
    after, before = (load_file(tmp_path / n / "model/model.safetensors") for n in ("run", "one"))
    changed = {
        name.removesuffix(".weight") for name in after if (after[name] != before[name]).any()
    }
    assert changed == {module.name for module in rank_map.lrc}


def test_every_optimizer_keeps_a_state_of_tensors_and_numbers(tmp_path):
    for name in OPTIMIZERS:
        options = PretrainOptions()
        options = replace(options, optimizer=replace(options.optimizer, optimizer=name))
        model = small_llama()
        matrices = {id(p) for n, p in model.named_parameters() if "_proj" in n}
        optimizer = choice.optimizer_of(options, list(model.parameters()), matrices)
        model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
        optimizer.step()
        torch.save(optimizer.state_dict(), tmp_path / name)
        torch.load(tmp_path / name, weights_only=True)


class Signs(torch.optim.SGD):
    """A step in the direction of the signs."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.sign_()
        super().step()


def signs(taken, rest, common, settings):
    return Signs(taken, lr=10 * common.learning_rate, momentum=0.9)


SIGNS = OptimizerKind(
    signs,
    lambda p, settings, taken: 4 * p.numel(),
    takes=lambda p, settings: p.ndim == 2,
    rest="adamw",
)


@pytest.fixture
def with_signs(monkeypatch):
    entry = Entry("the signs of matrices' gradients", f"{__name__}:SIGNS")
    monkeypatch.setitem(registry.OPTIMIZERS.entries, "signs", entry)


def test_an_optimizer_that_is_registered_trains_and_resumes_with_adamw_for_the_rest(
    inputs, tmp_path, with_signs
):
    options = options_of(inputs, **SHORT, optimizer="signs", learning_rate=1e-4)
    pretrain(options, tmp_path / "whole")
    cut(tmp_path / "whole", tmp_path / "cut")
    pretrain(options, tmp_path / "cut", resume=True)
    models = [load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    last = Checkpoints(tmp_path / "cut/checkpoints").latest()
    state = torch.load(last / "training.pt", weights_only=True)["optimizer"]["optimizers"]
    peaks = [one["param_groups"][0]["initial_lr"] for one in state]
    assert peaks == pytest.approx([1e-3, 1e-4])


def test_every_group_follows_the_schedule_from_its_own_peak():
    options = replace(PretrainOptions(), steps=10)
    matrix, vector = (torch.nn.Parameter(torch.ones(n)) for n in (4, 3))
    made = [torch.optim.SGD([matrix], lr=2.0), torch.optim.AdamW([vector], lr=0.5)]
    optimizer = CombinedOptimizer(made)
    schedule = scheduled(optimizer, options, 0)
    for done in range(10):
        wanted = factor(done, 10, options.optimizer)
        rates = [one.param_groups[0]["lr"] for one in made]
        assert rates == pytest.approx([2.0 * wanted, 0.5 * wanted])
        matrix.grad, vector.grad = torch.ones(4), torch.ones(3)
        optimizer.step()
        schedule.step()
    assert matrix[0] != 1
    assert vector[0] != 1


def test_the_help_lists_the_options_of_the_optimizer_that_is_named(capsys):
    helps = []
    for arguments in ([], ["--optimizer", "galore"]):
        with pytest.raises(SystemExit):
            command.COMMAND.parse([*arguments, "--help"])
        helps.append(capsys.readouterr().out)
    assert "--galore-rank" not in helps[0]
    assert "--galore-rank" in helps[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "sgd"], "no --optimizer sgd; there are: adamw, galore"),
        (["--galore-rank", "3"], "--galore-rank goes with --optimizer galore: leave it out"),
        (["--lora-rank=3"], "--lora-rank goes with --train lora or dora: leave it out"),
        (["--train", "galore", "--optimizer", "adamw"], "is optimised by galore, not by adamw"),
        (["--train", "dense"], "--train is one of full, lrc, nlrc, galore, lora, dora"),
        (["--optimizer", "galore", "--masters", "bfloat16"], "galore updates only float32 masters"),
        (["--map", "m.json"], "--map goes with --train lrc or nlrc"),
    ],
)
def test_ways_that_cannot_be_are_refused_in_a_line(arguments, message):
    with pytest.raises(InputError, match=message):
        command.COMMAND.parse(arguments)


def test_options_of_runs_of_before_are_read(tmp_path):
    from spectra_pretrain.finetuning.options import FinetuneOptions
    from spectra_pretrain.optionfile import read_options

    path = tmp_path / "finetune.json"
    path.write_text(json.dumps({"checkpoint": "c", "train": "galore", "galore_rank": 8}))
    options = read_options(path, FinetuneOptions)
    assert (options.trained.train, options.optimizer.optimizer) == ("full", "galore")
    assert options.optimizer_settings.galore_rank == 8
    assert options.batch.seq_len == 1024


def test_a_name_that_no_registry_has_lists_those_that_it_has():
    codecs = Registry("codec", {"json": Entry("text", "json:JSONDecoder")})
    assert codecs["json"] is json.JSONDecoder
    assert codecs.help() == "json: text"
    with pytest.raises(InputError, match="no codec 'xml'; there are: json"):
        codecs["xml"]

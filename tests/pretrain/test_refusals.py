"""Runs that cannot be made, or must stop, and what they say."""

import json

import pytest
import torch

from spectra.cli import main
from spectra.store.lock import locked
from spectra_data.errors import InputError
from spectra_pretrain.batches import split
from spectra_pretrain.finiteness import NonFiniteError, first_non_finite
from spectra_pretrain.run import pretrain
from tests.pretrain.runs import flags, options_of
from tests.small import small_llama


def test_a_run_is_not_written_over(finished, inputs):
    with pytest.raises(InputError, match="already holds a run: add --resume"):
        pretrain(options_of(inputs), finished[0])


def test_a_loss_that_is_not_finite_stops_with_step_and_place(inputs, tmp_path, monkeypatch, capsys):
    options = options_of(inputs)
    from spectra_pretrain import run

    original = run.new_model

    def broken(*args):
        model = original(*args)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
        return model

    monkeypatch.setattr(run, "new_model", broken)
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
    place = first_non_finite(model, split({"input_ids": batch}, micro), loss_is_finite=False)
    assert place == "the output of model.layers.1.mlp.act_fn is not finite"


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_names_its_matrix(inputs, tmp_path, monkeypatch, clip, value):
    from spectra_pretrain import run

    original = run.new_model

    def broken(*args):
        model = original(*args)
        weight = model.model.layers[1].mlp.up_proj.weight
        weight.register_hook(lambda gradient: torch.full_like(gradient, value))
        return model

    monkeypatch.setattr(run, "new_model", broken)
    place = r"the gradient of model\.layers\.1\.mlp\.up_proj\.weight is not finite"
    with pytest.raises(NonFiniteError, match=place):
        pretrain(options_of(inputs, clip=clip, record_every=0), tmp_path / "run")


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
        ({"device": "cuda:99"}, "--device"),
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


@pytest.mark.parametrize("model_type", ["vit", "t5"])
def test_a_model_that_is_no_causal_language_model_says_so(inputs, tmp_path, capsys, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    changes = {"model": str(tmp_path), "out": str(tmp_path / "run")}
    assert main(["pretrain", *flags(inputs, **changes)]) == 2
    assert "no causal language model of" in capsys.readouterr().err


def test_two_processes_do_not_write_one_run(inputs, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with locked(out), pytest.raises(InputError, match="another process is writing to"):
        pretrain(options_of(inputs), out)
    assert list(out.iterdir()) == []


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

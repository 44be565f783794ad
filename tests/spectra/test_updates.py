"""Adapters of peft without their base: scanned as the update B·A·scale that they add to it."""

import json

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import spectra
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra_data.errors import InputError
from tests.small import small_llama, small_model

pytestmark = pytest.mark.filterwarnings("ignore::spectra.checkpoint.notes.CheckpointNote")
Q = "model.layers.0.self_attn.q_proj"
TARGETS = ["q_proj", "v_proj", "down_proj"]


def adapted(folder, model=None, kind=peft.LoraConfig, **changes):
    """An adapter with random factors; returns the change of every weight when it is merged."""
    model = small_llama() if model is None else model
    before = {name: value.clone() for name, value in model.named_parameters()}
    config = kind(**{"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | changes)
    wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    wrapped.save_pretrained(folder)
    merged = wrapped.merge_and_unload()
    changed = {name: value - before[name] for name, value in merged.named_parameters()}
    return {name.removesuffix(".weight"): v for name, v in changed.items() if v.abs().max() > 0}


def updates(place):
    opened = open_checkpoint(str(place), updates=True)
    return {matrix.name: opened.read(matrix) for matrix in opened.matrices}


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": 12},
        {"lora_alpha": 8, "use_rslora": True},
        {
            "rank_pattern": {"down_proj": 6, r"layers\.0\.self_attn\.q_proj": 2},
            "alpha_pattern": {"v_proj": 3},
        },
    ],
)
@pytest.mark.parametrize("safe", [True, False])
def test_an_adapter_is_scanned_as_what_merging_it_adds(tmp_path, changes, safe):
    merged = adapted(tmp_path / "a", **changes)
    if not safe:
        tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
        torch.save(tensors, tmp_path / "a" / "adapter_model.bin")
        (tmp_path / "a" / "adapter_model.safetensors").unlink()
    found = updates(tmp_path / "a")
    assert found.keys() == merged.keys()
    assert len(found) == 6
    for name, value in found.items():
        torch.testing.assert_close(value, merged[name], atol=1e-5, rtol=1e-4)


def test_a_scan_of_an_adapter_has_the_spectra_shapes_and_roles_of_its_bases_matrices(
    tmp_path, capsys
):
    merged = adapted(tmp_path / "a")
    scan = spectra.scan(str(tmp_path / "a"), tmp_path / "scan.zarr")["spectra"]
    small_llama().save_pretrained(tmp_path / "base")
    base = spectra.scan(str(tmp_path / "base"), tmp_path / "base.zarr")["spectra"]
    of_base = base.sel(matrix=scan.matrix)
    for name in ("layer", "role", "rows", "cols"):
        assert scan[name].values.tolist() == of_base[name].values.tolist()
    for name in scan.matrix.values:
        values = scan.weight.sel(matrix=name).isel(step=0).dropna("index")
        expected = torch.linalg.svdvals(merged[str(name)].detach().double())
        np.testing.assert_allclose(values[:4], expected[:4], rtol=1e-5)
        assert (values[4:] < 1e-5 * values[0]).all()


def test_the_command_says_that_it_scans_an_update(tmp_path, capsys):
    from spectra.cli import main

    adapted(tmp_path / "a")
    assert main(["scan", str(tmp_path / "a"), "--out", str(tmp_path / "scan.zarr")]) == 0
    assert "the update that this adapter adds to its base's weights" in capsys.readouterr().err
    assert spectra.open(tmp_path / "scan.zarr").attrs["model"]["config"]["adapter"]["r"] == 4


def test_checkpoints_of_an_adapters_training_are_a_series(tmp_path):
    for step in (10, 20):
        adapted(tmp_path / "run" / f"checkpoint-{step}")
    scan = spectra.scan(str(tmp_path / "run"), tmp_path / "scan.zarr")
    assert scan["spectra"].step.values.tolist() == [10, 20]


def test_layers_that_hold_their_weights_transposed_are_upright(tmp_path):
    model = small_model("gpt2")
    merged = adapted(tmp_path / "a", model, target_modules=["c_attn", "c_proj"])
    for name, value in updates(tmp_path / "a").items():
        torch.testing.assert_close(value, merged[name].mT, atol=1e-5, rtol=1e-4)


def test_a_fused_layer_is_split_as_its_base_is_where_that_is_on_this_machine(tmp_path):
    model = small_model("gpt2")
    model.save_pretrained(tmp_path / "base")
    model.config._name_or_path = str(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    merged = adapted(tmp_path / "a", model, target_modules=["c_attn"])
    found = updates(tmp_path / "a")
    assert sorted({name.rpartition(".")[2] for name in found}) == ["k_proj", "q_proj", "v_proj"]
    rows = [found[f"transformer.h.0.attn.{part}_proj"] for part in "qkv"]
    whole = merged["transformer.h.0.attn.c_attn"].mT
    torch.testing.assert_close(torch.cat(rows), whole, atol=1e-5, rtol=1e-4)


def test_the_file_of_an_adapter_is_not_read_as_a_model(tmp_path):
    adapted(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    assert updates(file).keys() == updates(tmp_path / "a").keys()
    with pytest.raises(InputError, match="is a peft adapter, not a checkpoint"):
        open_checkpoint(str(file))
    with pytest.raises(InputError, match="is a peft adapter, not a checkpoint"):
        spectra.compress(str(tmp_path / "a"), None, tmp_path / "out", budget=0.5)


def test_modules_that_are_saved_whole_are_no_updates(tmp_path):
    adapted(tmp_path / "a", target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"])
    opened = open_checkpoint(str(tmp_path / "a"), updates=True)
    assert {matrix.role for matrix in opened.matrices} == {"q"}
    reasons = {skipped.name: skipped.reason for skipped in opened.skipped}
    assert reasons["base_model.model.lm_head.weight"] == "no factor of an update"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "DoRA's update depends on its base's weights: merge it"),
        ({"peft_type": "IA3"}, "is an adapter of kind IA3, and only LORA is read"),
        ({"layer_replication": [[0, 2]]}, "sets layer_replication, which is not read"),
        ({"target_parameters": ["experts.down_proj"]}, "sets target_parameters"),
        ({"peft_type": None}, "is damaged: it names no peft_type"),
        ({"r": 8}, "has factors of ranks 4 and 4, but adapter_config.json says 8"),
        ({"r": "four"}, "adapter_config.json is damaged"),
        ({"rank_pattern": {"(": 3}}, "adapter_config.json is damaged"),
        ({"lora_alpha": None}, "adapter_config.json is damaged"),
    ],
)
def test_adapters_whose_update_is_not_in_their_files_are_refused(tmp_path, changes, message):
    adapted(tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        spectra.scan(str(tmp_path / "a"), tmp_path / "scan.zarr")


def test_a_missing_factor_is_named(tmp_path):
    adapted(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[f"base_model.model.{Q}.lora_B.weight"]
    save_file(tensors, file)
    with pytest.raises(InputError, match=rf"{Q}\.lora_B\.weight is missing"):
        spectra.scan(str(tmp_path / "a"), tmp_path / "scan.zarr")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no checkpoint"):
        open_checkpoint(str(tmp_path / "a"), updates=True)


def test_an_initialisation_that_takes_from_the_base_is_noted(tmp_path):
    adapted(tmp_path / "a", init_lora_weights="pissa")
    with pytest.warns(match="pissa moves a part of the base's weights into the adapter's factors"):
        open_checkpoint(str(tmp_path / "a"), updates=True)

"""Plain peft on compressed models: low-rank layers are adapted like linear ones."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import spectra
from spectra.models.pairs import compressed_layers
from spectra.storages.layer import CompressedLinear, LayerPair
from spectra_data.errors import InputError
from tests.small import random_batch, small_llama

Q = "model.layers.0.self_attn.q_proj"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("error:.*did not match any targeted module"),
]


@pytest.fixture(scope="module", params=["factors", "pivoted"])
def compressed(request, tmp_path_factory):
    """A checkpoint with low-rank and dense matrices."""
    folder = tmp_path_factory.mktemp(request.param)
    small_llama().save_pretrained(folder / "m")
    spectra.scan(str(folder / "m"), folder / "scan.zarr")
    rank_map = spectra.allocate(folder / "scan.zarr", err=0.6, method="uniform")
    spectra.compress(str(folder / "m"), rank_map, folder / "c", storage=request.param)
    return folder / "c"


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert compressed_layers(model)
    return model


def adapted(model, targets="all-linear", **changes):
    config = peft.LoraConfig(
        **{"r": 2, "target_modules": targets, "task_type": "CAUSAL_LM"} | changes
    )
    wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return wrapped


def matrices_with_adapters(model):
    names = {n.split(".lora_A")[0] for n, _ in model.named_parameters() if "lora_A" in n}
    modules = dict(model.named_modules())
    parents = {n: n.rpartition(".")[0] for n in names}
    owners = {p if isinstance(modules[p], LayerPair) else n for n, p in parents.items()}
    return {owner.removeprefix("base_model.model.") for owner in owners}


def logits(model):
    with torch.no_grad():
        return model(input_ids=random_batch(0)).logits


def test_all_linear_adapts_every_matrix_of_a_compressed_model(compressed):
    model = load(compressed)
    before, lowrank = logits(model), set(compressed_layers(model))
    dense = {m.name for m in spectra.find_matrices(model)[0]}
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config)
    torch.testing.assert_close(logits(wrapped), before)
    assert matrices_with_adapters(wrapped) == dense
    assert lowrank <= dense


def test_transformers_own_interface_adapts_them_too(compressed):
    model = load(compressed)
    names = {m.name for m in spectra.find_matrices(model)[0]}
    model.add_adapter(peft.LoraConfig(r=2, target_modules="all-linear"))
    assert matrices_with_adapters(model) == names


def test_an_adapter_is_saved_and_loaded_onto_the_compressed_model(compressed, tmp_path):
    wrapped = adapted(load(compressed))
    wrapped.save_pretrained(tmp_path / "a")
    again = peft.PeftModel.from_pretrained(load(compressed), tmp_path / "a")
    torch.testing.assert_close(logits(again), logits(wrapped))
    assert not torch.allclose(logits(again), logits(load(compressed)))


def test_a_merged_model_is_saved_as_a_compressed_one(compressed, tmp_path):
    wrapped = adapted(load(compressed))
    expected = logits(wrapped)
    with pytest.raises(InputError, match="still has adapters: merge them"):
        wrapped.get_base_model().save_pretrained(tmp_path / "early")
    merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path / "out")
    again = load(tmp_path / "out")
    assert compressed_layers(again).keys() == compressed_layers(load(compressed)).keys()
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-4)


def test_names_of_matrices_in_a_configuration_mean_their_parts(compressed):
    wrapped = adapted(
        load(compressed), rank_pattern={"q_proj": 3}, exclude_modules=["down_proj", "v_proj"]
    )
    found = matrices_with_adapters(wrapped)
    assert {name.rpartition(".")[2] for name in found} == {
        "q_proj", "k_proj", "o_proj", "gate_proj", "up_proj"
    }  # fmt: skip
    ranks = {n: p.shape[0] for n, p in wrapped.named_parameters() if "lora_A" in n}
    assert {rank for name, rank in ranks.items() if "q_proj" in name} == {3}
    assert {rank for name, rank in ranks.items() if "q_proj" not in name} == {2}
    wrapped = adapted(load(compressed), exclude_modules=r".*\.mlp\..*_proj")
    assert not any(".mlp." in name for name in matrices_with_adapters(wrapped))


def test_other_targets_leave_low_rank_layers_alone(compressed):
    wrapped = adapted(load(compressed), ["lm_head"])
    assert any(isinstance(module, CompressedLinear) for module in wrapped.modules())
    with pytest.raises(ValueError, match="is not supported"):
        adapted(load(compressed), sorted(compressed_layers(load(compressed)))[:1])


def test_a_layer_without_linear_parts_says_so(compressed, monkeypatch):
    model = load(compressed)
    kind = type(next(iter(compressed_layers(model).values())))
    monkeypatch.setattr(kind, "pair", CompressedLinear.pair)
    with pytest.raises(InputError, match="layers support no adapters"):
        adapted(model)


def test_models_that_are_not_compressed_are_adapted_as_ever():
    wrapped = adapted(small_llama(), ["q_proj"])
    names = {f"model.layers.{i}.self_attn.q_proj" for i in range(2)}
    assert matrices_with_adapters(wrapped) == names

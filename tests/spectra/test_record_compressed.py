"""Recording a model with low-rank layers: the products are matrices, as in the dense model."""

import numpy as np
import pytest
import torch

import spectra
from spectra.calibration.outliers import outlier_shares
from spectra.matrices import find_matrices, unwrapped
from spectra.models.pairs import linear_layers, pair
from spectra.recording.probe import probe_gradients
from spectra.storages.layer import put
from spectra.storages.registry import STORAGES
from spectra.storages.stored import Factors
from tests.small import random_batch, small_llama, train

LOW = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def compressed(storage: str, rank: int = 3):
    """A small model with two low-rank layers, and the dense model that it stands for."""
    low, dense = small_llama(), small_llama()
    for name in LOW:
        weight = dense.get_submodule(name).weight
        rows, cols = weight.shape
        left, right = torch.randn(rows, rank) / 8, torch.randn(rank, cols) / 8
        layer = STORAGES[storage].layer()(cols, rows, rank)
        stored = layer.stored.encode(Factors(left.double(), right.double()), torch.float32)
        layer.load_state_dict(stored.tensors)
        put(low, name, layer)
        weight.data = layer.product().detach()
    return low, dense


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_of_a_product_is_that_of_the_dense_weight(storage, frozen):
    low, dense = compressed(storage)
    low.requires_grad_(not frozen)
    probe = random_batch(3)
    found, _ = find_matrices(low)
    expected, _ = find_matrices(dense)
    assert list(found) == list(expected)
    ours = probe_gradients(low, probe, [w.parameter for w in found.values()])
    theirs = probe_gradients(dense, probe, [w.parameter for w in expected.values()])
    for matrix, one, other in zip(found, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7, msg=matrix.name)


def test_a_run_through_low_rank_layers_records_their_products(tmp_path):
    low, _ = compressed("factors")
    low.requires_grad_(False)
    for name in LOW:
        low.get_submodule(name).requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in low.parameters() if p.requires_grad], lr=1e-2)
    before = {name: low.get_submodule(name).product().detach().clone() for name in LOW}
    with spectra.record(low, optimizer, tmp_path / "a.zarr", probe=random_batch(3), every=1) as r:
        train(low, optimizer, 1, recorder=r)
    run = spectra.open(tmp_path / "a.zarr")["spectra"]
    for name in LOW:
        product = low.get_submodule(name).product().detach()
        one = run.sel(matrix=name)
        rank = product.shape
        expected = torch.linalg.svdvals(product)[:3]
        np.testing.assert_allclose(one.weight[-1, :3], expected, rtol=1e-4)
        moved = torch.linalg.svdvals(product - before[name])[: min(rank)]
        np.testing.assert_allclose(one["update"][-1, :3], moved[:3], rtol=1e-3)
    still = run.sel(matrix="model.layers.0.mlp.up_proj")
    assert np.array_equal(still.weight[0], still.weight[-1])
    assert np.isfinite(still.gradient[-1, 0])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("how", [{"lora_dropout": 0.5}, {"use_dora": True}])
def test_a_matrix_with_an_adapter_is_the_merged_one(storage, how):
    peft = pytest.importorskip("peft")
    low, dense = compressed(storage)
    pair(low)
    low.model.layers[0].self_attn.o_proj.bias = torch.nn.Parameter(torch.randn(32))
    dense.model.layers[0].self_attn.o_proj.bias = low.model.layers[0].self_attn.o_proj.bias
    config = peft.LoraConfig(r=2, target_modules=list(linear_layers(low)), **how)
    adapted = peft.get_peft_model(low, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.train()
    found, _ = find_matrices(adapted)
    expected, _ = find_matrices(dense)
    assert {m.name for m in found} == {m.name for m in expected}
    values = {matrix: weight.value for matrix, weight in found.items()}
    assert all(module.training for module in adapted.modules())
    for matrix, value in values.items():  # whose gradient is then that of the merged weight
        weight = dense.get_submodule(matrix.name).weight
        assert not torch.allclose(weight, value, atol=1e-3)
        weight.data = value
    probe = random_batch(3)
    ours = probe_gradients(adapted, probe, [w.parameter for w in found.values()])
    weights = [dense.get_submodule(m.name).weight for m in found]
    theirs = probe_gradients(dense, probe, weights)
    for matrix, one, other in zip(found, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6, msg=matrix.name)
    merged = adapted.merge_and_unload()
    for name in ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"):
        (value,) = (v for m, v in values.items() if m.name == name)
        torch.testing.assert_close(merged.get_submodule(name).weight, value, rtol=1e-4, atol=1e-6)


def adapted(model, **how):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", **how))


def test_a_large_bias_takes_no_digits_of_the_matrix():
    model = small_llama()
    layer = model.model.layers[0].self_attn.o_proj
    layer.bias = torch.nn.Parameter(torch.full((layer.out_features,), 1e4))
    before = layer.weight.detach().clone()
    found, _ = find_matrices(adapted(model))
    (value,) = (w.value for m, w in found.items() if m.name == "model.layers.0.self_attn.o_proj")
    assert torch.equal(value, before)  # an adapter begins with nothing


def test_adapters_of_gpt2_are_in_its_matrices():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32)
    model = transformers.GPT2LMHeadModel(config)
    expected = {m.name: w.value.clone() for m, w in find_matrices(model)[0].items()}
    found, _ = find_matrices(adapted(model, fan_in_fan_out=True))
    assert {m.name for m in found} == set(expected)
    for matrix, weight in found.items():
        torch.testing.assert_close(weight.value, expected[matrix.name])


def test_a_prompt_stays_before_the_model_that_it_was_learnt_for():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(small_llama(), config)
    assert unwrapped(model) is model


def test_outliers_are_those_of_what_layers_apply():
    low, dense = compressed("factors")
    batches = [random_batch(3)]
    expected = outlier_shares(dense, batches)
    assert outlier_shares(low, batches) == pytest.approx(expected)
    assert outlier_shares(adapted(dense), batches) == pytest.approx(expected)

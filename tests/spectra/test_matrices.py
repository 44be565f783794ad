"""Which weights are matrices."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from data.errors import InputError
from spectra.matrices import Matrix, find_matrices, layer_of, role_of
from tests.small import small_llama


def test_a_llama_has_seven_matrices_a_block():
    matrices, skipped = find_matrices(small_llama())
    names = [m.name for m in matrices]
    assert len(names) == 14
    assert names[0] == "model.layers.0.self_attn.q_proj"
    assert [m.role for m in matrices][:7] == ["q", "k", "v", "o", "gate", "up", "down"]
    assert {m.layer for m in matrices} == {0, 1}
    down = next(m for m in matrices if m.role == "down")
    assert (down.rows, down.cols, down.full_rank) == (32, 48, 32)
    reasons = {s.name: s.reason for s in skipped}
    assert reasons["lm_head.weight"] == "outside the transformer blocks"
    assert reasons["model.norm.weight"] == "not the weight of a linear layer"


def test_compiled_and_wrapped_models_have_the_same_names():
    model = small_llama()
    expected = list(find_matrices(model)[0])
    assert list(find_matrices(torch.compile(model))[0]) == expected
    model.model.layers[0] = torch.compile(model.model.layers[0])
    assert list(find_matrices(model)[0]) == expected


def test_a_shared_weight_is_one_matrix():
    model = small_llama()
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    names = [m.name for m in find_matrices(model)[0]]
    assert len(names) == 13
    assert "model.layers.0.mlp.up_proj" in names


def test_gpt2_stores_its_matrices_transposed():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    matrices, _ = find_matrices(model)
    assert Matrix("transformer.h.0.attn.c_attn", 0, "c_attn", 24, 8) in matrices


def test_roles_and_layers_come_from_the_path():
    assert role_of("model.layers.7.mlp.down_proj") == "down"
    assert role_of("transformer.h.0.attn.c_attn") == "c_attn"
    assert layer_of("model.layers.11.mlp.down_proj") == 11
    assert layer_of("lm_head") is None


def test_a_model_without_blocks_is_refused():
    with pytest.raises(InputError, match="no linear layer inside a numbered block"):
        find_matrices(torch.nn.Linear(3, 3))

"""Which weights are matrices."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from spectra.matrices import Matrix, block_labels, find_matrices, layer_of, role_of
from spectra_data.errors import InputError
from tests.small import SIZES, small_llama, small_model


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


LLAMA_ROLES = {"q", "k", "v", "o", "gate", "up", "down"}
ROLES = {
    "llama": LLAMA_ROLES,
    "mistral": LLAMA_ROLES,
    "qwen2": LLAMA_ROLES,
    "qwen3": LLAMA_ROLES,
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "opt": {"q", "k", "v", "out_proj", "fc1", "fc2"},
    "mixtral": LLAMA_ROLES,
    "qwen3_moe": LLAMA_ROLES,
    "phi3": {"qkv_proj", "o", "gate_up_proj", "down"},
    "gpt_oss": LLAMA_ROLES,
}


@pytest.mark.parametrize("family", SIZES)
def test_every_linear_weight_in_a_block_is_found_and_the_rest_is_named(family):
    model = small_model(family)
    matrices, skipped = find_matrices(model)
    assert {m.role for m in matrices} == ROLES[family]
    assert {m.layer for m in matrices} == {0, 1}
    for matrix, weight in matrices.items():
        assert weight.value.shape == (matrix.rows, matrix.cols)
    linear = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and layer_of(name) is not None
    ]
    assert {f"{m.name}.weight" for m in matrices} >= set(linear)
    used = {id(weight.parameter) for weight in matrices.values()}
    left_out = [name for name, p in model.named_parameters() if id(p) not in used]
    assert sorted(left_out) == sorted(s.name for s in skipped)
    assert all(s.reason for s in skipped)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_are_matrices_of_their_own_that_cover_the_stack(family):
    model = small_model(family)
    matrices, _ = find_matrices(model)
    experts = {m.name: w for m, w in matrices.items() if ".experts." in m.name}
    assert len(experts) == 2 * 4 * 3  # layers, experts, gate, up and down
    stacked = next(n for n in dict(model.named_parameters()) if n.endswith("experts.gate_up_proj"))
    folder = stacked.removesuffix(".gate_up_proj")
    both = dict(model.named_parameters())[stacked][3]
    parts = [experts[f"{folder}.3.{part}_proj"].value for part in ("gate", "up")]
    assert sum(part.numel() for part in parts) == both.numel()
    assert parts[0].shape == parts[1].shape == (48, 32)
    values = torch.cat([part.flatten() for part in parts]).sort().values
    assert torch.equal(values, both.detach().flatten().sort().values)


def test_the_experts_of_a_mixtral_are_what_its_forward_pass_uses():
    model = small_model("mixtral")
    matrices = {m.name: w for m, w in find_matrices(model)[0].items()}
    folder = next(n for n in matrices if n.endswith("experts.2.gate_proj")).rsplit(".", 2)[0]
    experts = model.get_submodule(folder)
    x = torch.randn(5, 32)
    chosen, one = torch.full((5, 1), 2), torch.ones(5, 1)
    gate, up, down = (matrices[f"{folder}.2.{r}_proj"].value for r in ("gate", "up", "down"))
    expected = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(experts(x, chosen, one).detach(), expected)


def test_patterns_choose_matrices_and_a_pattern_that_matches_none_is_refused():
    matrices, skipped = find_matrices(small_llama(), ["*.mlp.*", "*.0.*.q_proj"])
    assert [m.role for m in matrices] == ["q", "gate", "up", "down", "gate", "up", "down"]
    reasons = {s.name: s.reason for s in skipped}
    assert reasons["model.layers.1.self_attn.q_proj"] == "not selected by matrices="
    assert [m.layer for m in find_matrices(small_llama(), "*.1.*")[0]] == [1] * 7
    with pytest.raises(InputError, match=r"matches none; names are like model\.layers\.0\.self"):
        find_matrices(small_llama(), ["*.mlp.*", "*.ffn.*"])


def test_compiled_and_wrapped_models_have_the_same_names():
    model = small_llama()
    expected = list(find_matrices(model)[0])
    assert list(find_matrices(torch.compile(model))[0]) == expected
    model.model.layers[0] = torch.compile(model.model.layers[0])
    matrices, skipped = find_matrices(model)
    assert list(matrices) == expected
    assert not any("_orig_mod" in s.name for s in skipped)


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


def test_quantised_weights_are_left_out_by_name():
    model = small_llama()
    up = model.model.layers[0].mlp.up_proj
    up.weight = torch.nn.Parameter(torch.zeros(48, 32, dtype=torch.uint8), requires_grad=False)
    reasons = {s.name: s.reason for s in find_matrices(model)[1]}
    assert reasons["model.layers.0.mlp.up_proj.weight"] == "quantised (torch.uint8)"


def test_roles_and_layers_come_from_the_path():
    assert role_of("model.layers.7.mlp.down_proj") == "down"
    assert role_of("transformer.h.0.attn.c_attn") == "c_attn"
    assert layer_of("model.layers.11.mlp.down_proj") == 11
    assert layer_of("lm_head") is None


def test_a_model_without_blocks_is_refused():
    with pytest.raises(InputError, match="no linear layer inside a numbered block"):
        find_matrices(torch.nn.Linear(3, 3))


def test_matrices_outside_any_block_have_an_empty_label():
    assert block_labels(["a.b", "c"]) == ["", ""]

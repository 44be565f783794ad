"""Checkpoints of every format give the same matrices, one at a time."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from spectra.checkpoint.address import Address, addresses, steps_of
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.checkpoint.digests import combined_sha256, digest
from spectra.checkpoint.tensor_slices import find_slices, scaled
from spectra.checkpoint.tensors import StoredTensor
from spectra_data.errors import InputError
from tests.small import SIZES, small_model
from tests.spectra.checkpoints import as_torch_file, edit_config, rewritten, saved, sharded

Q = "model.layers.0.self_attn.q_proj"


def read_all(checkpoint):
    return {matrix.name: checkpoint.read(matrix) for matrix in checkpoint.matrices}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def of(checkpoint, name):
    return next(matrix for matrix in checkpoint.matrices if matrix.name == name)


@pytest.mark.parametrize("family", [name for name in SIZES if name != "mixtral"])
def test_a_checkpoint_on_disk_has_the_matrices_of_the_model(tmp_path, family):
    model = saved(tmp_path, family)
    on_disk, in_memory = open_checkpoint(tmp_path), open_checkpoint(model)
    assert list(on_disk.matrices) == list(in_memory.matrices)
    assert_same(read_all(on_disk), read_all(in_memory))
    held = {part.tensor for part in on_disk.matrices.values()} | {s.name for s in on_disk.skipped}
    assert held == set(on_disk.source.tensors)  # nothing is left out in silence


def test_mixtral_on_disk_has_a_matrix_for_every_expert(tmp_path):
    model = saved(tmp_path, "mixtral")
    on_disk, in_memory = open_checkpoint(tmp_path), open_checkpoint(model)
    assert len(on_disk.matrices) == len(in_memory.matrices) == 2 * (4 + 3 * 4)
    names = {matrix.name for matrix in on_disk.matrices}
    assert names == {matrix.name for matrix in in_memory.matrices}  # files call them w1, w3, w2
    values = read_all(on_disk)
    for part in ("gate_proj", "up_proj", "down_proj"):
        name = f"model.layers.1.mlp.experts.2.{part}"
        assert torch.equal(values[name], in_memory.read(of(in_memory, name)))
    roles = {matrix.role for matrix in on_disk.matrices}
    assert roles == {"q", "k", "v", "o", "gate", "up", "down"}
    assert "routes tokens to experts" in {s.reason for s in on_disk.skipped}


def test_fused_queries_keys_and_values_are_what_the_model_computes_with(tmp_path):
    model = saved(tmp_path, "gpt_neox")
    attention = model.gpt_neox.layers[0].attention
    values = read_all(open_checkpoint(tmp_path))
    hidden = torch.randn(1, 1, 32)
    fused = attention.query_key_value(hidden) - attention.query_key_value.bias
    q, k, v = fused.view(1, 1, 4, 3 * 8).transpose(1, 2).chunk(3, dim=-1)  # as transformers does
    for role, expected in (("q", q), ("k", k), ("v", v)):
        weight = values[f"gpt_neox.layers.0.attention.{role}_proj"]
        mine = (hidden @ weight.T).view(1, 1, 4, 8).transpose(1, 2)
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("new", [True, False])
def test_files_of_torch_give_the_same(tmp_path, new):
    saved(tmp_path)
    expected = read_all(open_checkpoint(tmp_path))
    as_torch_file(tmp_path, _use_new_zipfile_serialization=new)
    assert_same(read_all(open_checkpoint(tmp_path)), expected)


def test_shards_of_torch_under_an_index_give_the_same(tmp_path):
    sharded(tmp_path)
    expected = read_all(open_checkpoint(tmp_path))
    for path in sorted(tmp_path.glob("*.safetensors")):
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()
    index = tmp_path / "model.safetensors.index.json"
    text = index.read_text().replace(".safetensors", ".bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(text)
    index.unlink()
    assert_same(read_all(open_checkpoint(tmp_path)), expected)
    shard = tmp_path / "model-00002-of-00003.bin"
    shard.write_bytes(shard.read_bytes()[:-200])
    (problem,) = open_checkpoint(tmp_path).problems[:1]
    assert problem == "model-00002-of-00003.bin is truncated, or not a file of torch"


def test_a_wrapped_state_and_transposed_storage_are_read(tmp_path):
    weight = torch.arange(12.0).reshape(3, 4)
    state = {"model.layers.0.a.weight": weight.T, "model.layers.0.b.weight": weight[1:]}
    torch.save({"state_dict": state, "step": 3}, tmp_path / "x.bin")
    values = read_all(open_checkpoint(tmp_path / "x.bin"))
    assert_same(values, {name.removesuffix(".weight"): value for name, value in state.items()})


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"model.layers.0.a.weight": Evil()}, tmp_path / "x.bin")
    with pytest.raises(InputError, match="more than tensors and is not unpickled"):
        open_checkpoint(tmp_path / "x.bin")
    (tmp_path / "y.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match=r"y\.bin"):
        open_checkpoint(tmp_path / "y.bin")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]
)
def test_every_floating_format_is_read_as_it_is(tmp_path, dtype):
    weight = torch.randn(6, 5).to(dtype)
    save_file({"model.layers.0.a.weight": weight}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    (value,) = read_all(checkpoint).values()
    assert value.dtype == dtype
    assert torch.equal(value.double(), weight.double())


@pytest.mark.parametrize("scales", ["one", "rows", "blocks"])
def test_float8_is_multiplied_by_its_scales(tmp_path, scales):
    weight = torch.randn(200, 130).to(torch.float8_e4m3fn)
    name = "model.layers.0.a.weight"
    scale = {"one": torch.tensor(0.5), "rows": torch.rand(200, 1), "blocks": torch.rand(2, 2)}[
        scales
    ]
    suffix = "_scale_inv" if scales == "blocks" else "_scale"
    save_file({name: weight, name + suffix: scale}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    (value,) = read_all(checkpoint).values()
    whole = scale
    if scales == "blocks":
        whole = scale[torch.arange(200) // 128][:, torch.arange(130) // 128]
    torch.testing.assert_close(value, weight.float() * whole)
    assert [s.reason for s in checkpoint.skipped] == ["scales of a quantised weight"]


def test_scales_of_a_stack_belong_to_its_entries_or_to_all_of_it(tmp_path):
    weight = torch.randn(3, 8, 6).to(torch.float8_e4m3fn)
    name = "model.layers.0.mlp.experts.up_proj"
    for scale in (torch.tensor([0.5, 2.0, 4.0]), torch.tensor([0.5]), torch.tensor(0.5)):
        tensors = {name: weight, f"{name}_scale": scale, "zz": torch.full((9,), 7.0)}
        save_file(tensors, tmp_path / "x.safetensors")
        values = read_all(open_checkpoint(tmp_path / "x.safetensors"))
        whole = scale.reshape(-1, 1, 1) if scale.ndim else scale
        expected = weight.float() * whole
        for entry, value in enumerate(values.values()):
            torch.testing.assert_close(value, expected[entry])


def test_blocks_that_are_wider_than_the_weight(tmp_path):
    weight = torch.randn(256, 100).to(torch.float8_e4m3fn)
    value = scaled(weight, torch.tensor([[2.0], [3.0]]), {})
    torch.testing.assert_close(value[:128], 2 * weight[:128].float())
    torch.testing.assert_close(value[128:], 3 * weight[128:].float())


def test_scales_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="scales of"):
        scaled(torch.zeros(4, 4).to(torch.float8_e4m3fn), torch.ones(3, 2), {})


def test_stacked_experts_are_read_one_by_one(tmp_path):
    saved(tmp_path, "gpt_oss")
    checkpoint = open_checkpoint(tmp_path)
    tensor = load_file(tmp_path / "model.safetensors")["model.layers.1.mlp.experts.gate_up_proj"]
    gate = checkpoint.read(of(checkpoint, "model.layers.1.mlp.experts.3.gate_proj"))
    assert torch.equal(gate, tensor[3, :, 0::2].T)
    part = checkpoint.matrices[of(checkpoint, "model.layers.1.mlp.experts.3.gate_proj")]
    assert checkpoint.source.read(part.tensor, part.entry).shape == tensor.shape[1:]


def test_quantised_and_other_tensors_are_left_out_with_their_reason():
    tensors = [
        StoredTensor("model.layers.0.a.weight", (4, 4), "I32", ""),
        StoredTensor("model.layers.0.norm.weight", (4,), "F32", ""),
        StoredTensor("model.layers.0.conv.weight", (4, 4, 3), "F32", ""),
        StoredTensor("model.embed_tokens.weight", (9, 4), "F32", ""),
        StoredTensor("model.layers.0.mlp.gate.weight", (4, 4), "F32", ""),
        StoredTensor("model.layers.0.A_log", (4, 4), "F32", ""),
    ]
    found, skipped = find_slices({t.name: t for t in tensors}, {})
    assert not found
    assert [s.reason for s in skipped] == [
        "quantised (I32)",
        "not the weight of a linear layer",
        "3-dimensional, and no stack of experts",
        "outside the transformer blocks",
        "routes tokens to experts",
        "not the weight of a linear layer",
    ]


GROUPS = {"num_attention_heads": 4, "num_key_value_heads": 2}
FOUR = {"num_attention_heads": 4}


@pytest.mark.parametrize(
    ("layer", "config", "rows", "expected"),
    [
        ("qkv_proj", GROUPS, 64, (32, 16, 16)),
        ("qkv_proj", GROUPS | {"model_type": "codegen"}, 64, None),
        ("query_key_value", FOUR | {"model_type": "falcon", "multi_query": True}, 48, (32, 8, 8)),
        ("query_key_value", FOUR | {"model_type": "persimmon"}, 48, (16, 16, 16)),
        ("query_key_value", FOUR | {"model_type": "unheard_of"}, 48, None),
        ("c_attn", {"model_type": "gpt_bigcode", "n_head": 4, "multi_query": True}, 48, (32, 8, 8)),
        ("c_attn", {"model_type": "gpt_bigcode", "n_head": 4}, 48, (16, 16, 16)),
        ("Wqkv", {"model_type": "mpt", "n_heads": 4}, 48, (16, 16, 16)),
        ("qkv_proj", {}, 48, None),
        ("qkv_proj", {"num_attention_heads": 5}, 64, None),
    ],
)
def test_fused_projections_are_split_where_their_layout_is_known(layer, config, rows, expected):
    tensor = StoredTensor(f"h.0.attn.{layer}.weight", (rows, 8), "F32", "")
    found, _ = find_slices({tensor.name: tensor}, config)
    sizes = {matrix.role: matrix.rows for matrix in found}
    if expected is None:
        assert sizes == {layer: rows}
    else:
        assert sizes == dict(zip("qkv", expected, strict=True))


@pytest.mark.parametrize("family", ["bloom", "falcon", "gpt_bigcode", "persimmon", "mpt"])
def test_splits_are_what_the_models_own_attention_computes_with(family):
    """A query that only q's rows see: zeroing them makes attention uniform."""
    names = {"mpt": {"d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 64}}
    common = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "n_head": 4}
    common |= {"n_embd": 32, "n_layer": 1, "intermediate_size": 48, "n_inner": 48}
    common |= {"multi_query": False} if family == "gpt_bigcode" else {}
    sizes = names.get(family, common) | {"vocab_size": 64, "pad_token_id": 2}
    config = AutoConfig.for_model(family, attn_implementation="eager", **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    checkpoint = open_checkpoint(model)
    parts = {matrix.role: part for matrix, part in checkpoint.matrices.items() if part.rows}
    assert set(parts) == {"q", "k", "v"}
    weight = model.get_parameter(f"{next(iter(checkpoint.fused))}.weight")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    tokens = torch.arange(3, 11)[None]
    layer = f"{next(iter(checkpoint.fused))}".rpartition(".")[0]
    seen = {}
    model.get_submodule(layer).register_forward_hook(lambda *given: seen.update(out=given[2][0]))

    def without(role):
        kept = weight.detach().clone()
        with torch.no_grad():
            for first, last, step in parts[role].rows:
                weight[first:last:step] = 0
            model(input_ids=tokens)
            weight.copy_(kept)
        return seen["out"].clone()

    with torch.no_grad():
        model(input_ids=tokens)
    out = seen["out"].clone()
    # without q or without k all scores are 0 (plus position): the same output; without v, none
    torch.testing.assert_close(without("q"), without("k"))
    assert not torch.allclose(without("q"), out, atol=1e-6)
    residual = without("v")
    shift = residual - residual[:, :1]
    assert shift.abs().max() < 1e-5 or torch.allclose(residual, _input_of(model, layer, tokens))


def _input_of(model, layer, tokens):
    """What bloom and falcon add to attention's output: the residual they are given."""
    seen = {}

    def note(_, arguments, named):
        seen["residual"] = named.get("residual", arguments[1] if len(arguments) > 1 else None)

    hook = model.get_submodule(layer).register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(input_ids=tokens)
    hook.remove()
    return seen["residual"]


def test_granites_experts_have_the_names_that_they_have_in_memory():
    home = "model.layers.0.block_sparse_moe"
    tensors = [
        StoredTensor(f"{home}.input_linear.weight", (2, 96, 32), "F32", ""),
        StoredTensor(f"{home}.output_linear.weight", (2, 32, 48), "F32", ""),
    ]
    config = {"model_type": "granitemoe", "hidden_size": 32}
    found, _ = find_slices({tensor.name: tensor for tensor in tensors}, config)
    experts = f"{home}.experts"
    assert {m.name: (m.rows, m.cols) for m in found if ".1." in m.name} == {
        f"{experts}.1.gate_proj": (48, 32),
        f"{experts}.1.up_proj": (48, 32),
        f"{experts}.1.down_proj": (32, 48),
    }


def test_a_gguf_file_is_read_under_the_names_of_transformers(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_head_count(2)
    draw = np.random.default_rng(0)
    shapes = {"attn_q": (32, 64), "ffn_down": (64, 96), "ffn_up_exps": (2, 96, 64)}
    weights = {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        kinds = gguf.GGMLQuantizationType
        kind = kinds.F16 if name == "ffn_down" else kinds.Q8_0
        packed = gguf.quants.quantize(weight, kind)
        writer.add_tensor(f"blk.0.{name}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    values = read_all(open_checkpoint(path))
    assert list(values) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.0.mlp.experts.0.up_proj",
        "model.layers.0.mlp.experts.1.up_proj",
    ]
    expected = [weights["attn_q"], weights["ffn_down"], *weights["ffn_up_exps"]]
    for value, weight in zip(values.values(), expected, strict=True):
        np.testing.assert_allclose(value.numpy(), weight, atol=0.02)


def test_gguf_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"pip install 'spectra-dynamics\[gguf\]'"):
        open_checkpoint(tmp_path / "x.gguf")


def test_the_hash_is_of_the_weights_not_of_the_files(tmp_path):
    saved(tmp_path / "one")
    sharded(tmp_path / "three")

    def hashed(folder):
        return combined_sha256({n: digest(w) for n, w in read_all(open_checkpoint(folder)).items()})

    before = hashed(tmp_path / "one")
    assert hashed(tmp_path / "three") == before
    rewritten(tmp_path / "one", lambda tensors: tensors["lm_head.weight"].zero_())
    assert hashed(tmp_path / "one") == before  # no matrix of a block
    rewritten(tmp_path / "one", lambda tensors: tensors[f"{Q}.weight"][0].add_(1e-3))
    assert hashed(tmp_path / "one") != before


# what is wrong with a checkpoint is said by file and tensor


def test_a_missing_shard_is_named_and_its_matrices_are_known(tmp_path):
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.matrices) == 14  # shapes are those of the other layer
    (problem,) = checkpoint.problems
    assert problem.startswith("model-00002-of-00003.safetensors is missing")
    lost = [m for m, p in checkpoint.matrices.items()
            if "00002" in checkpoint.source.tensors[p.tensor].file]  # fmt: skip
    assert lost
    with pytest.raises(InputError, match=r"00002-of-00003\.safetensors is missing, with model"):
        checkpoint.read(lost[0])


def test_a_truncated_shard_costs_what_lies_beyond_its_end(tmp_path):
    sharded(tmp_path)
    shard = tmp_path / "model-00001-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.problems) == 1
    assert checkpoint.problems[0].startswith("model-00001-of-00003.safetensors is truncated: ")
    shard.write_bytes(shard.read_bytes()[:20])
    assert "ends inside its header" in open_checkpoint(tmp_path).problems[0]


def test_an_index_that_disagrees_with_the_shards_is_told(tmp_path):
    sharded(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    file = index["weight_map"].pop(f"{Q}.weight")
    other = "model.layers.1.self_attn.q_proj.weight"
    wrong = next(f for f in set(index["weight_map"].values()) if f != index["weight_map"][other])
    index["weight_map"][other] = wrong
    path.write_text(json.dumps(index))
    problems = "\n".join(open_checkpoint(tmp_path).problems)
    assert f"{file}: {Q}.weight is not in model.safetensors.index.json" in problems
    assert f"{wrong} lacks {other}, which" in problems


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too few for a header"),
        (b"\xff" * 64, "not a safetensors file"),
        (b"\x08\0\0\0\0\0\0\0not json", "not a safetensors file"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [-8, 8]},
        {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2, 2]},
        [],
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, entry):
    header = json.dumps({"model.layers.0.a.weight": entry}).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0" * 64
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"entry of model.layers.0.a.weight is malformed"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_links_of_a_hubs_cache_are_files(tmp_path):
    saved(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert len(open_checkpoint(tmp_path / "snapshot").matrices) == 14


def test_a_trainers_folder_is_a_series_and_its_other_states_are_no_weights(tmp_path):
    torch.save({"x": torch.zeros(2)}, tmp_path / "training_args.bin")
    saved(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-10" / "optimizer.bin").write_bytes(b"x")
    assert [a.step for a in addresses([str(tmp_path)])] == [10]
    assert len(open_checkpoint(tmp_path / "checkpoint-10").matrices) == 14


def test_folders_and_files_that_hold_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint at .*nowhere"):
        addresses([str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match="holds no checkpoint"):
        addresses([str(tmp_path)])
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="is not a checkpoint"):
        addresses([str(tmp_path / "notes.txt")])
    save_file({"embed.weight": torch.zeros(3, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no matrix of a linear layer inside"):
        open_checkpoint(tmp_path)
    edit = tmp_path / "config.json"
    edit.write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        open_checkpoint(tmp_path)


def test_series_are_ordered_by_their_steps(tmp_path):
    for step in (1000, 20, 300):
        saved(tmp_path / f"step-{step}")
    series = addresses([str(tmp_path)])
    assert steps_of(series) == [20, 300, 1000]
    revisions = addresses(["EleutherAI/pythia-70m@step1,step1000"])
    assert [a.revision for a in revisions] == ["step1", "step1000"]
    assert steps_of(revisions) == [1, 1000]
    assert steps_of([Address("org/name-7b")]) == [0]  # its size is no step
    olmo = [Address("org/olmo", f"step{n}000-tokens{4 * n}B") for n in (1, 2, 10)]
    assert steps_of(olmo) == [1000, 2000, 10000]
    assert steps_of([Address("org/name", "main"), Address("org/name", "v")]) == [0, 1]
    with pytest.raises(InputError, match="are both step 5"):
        steps_of([Address("org/a-5"), Address("org/b-5")])


def test_a_model_in_memory_needs_no_file():
    model = small_model("llama")
    checkpoint = open_checkpoint(torch.compile(model))
    assert torch.equal(
        checkpoint.read(of(checkpoint, Q)), model.model.layers[0].self_attn.q_proj.weight
    )


def test_gate_and_up_of_phi_are_halves(tmp_path):
    saved(tmp_path, "phi3")
    edit_config(tmp_path, model_type="phi3")
    tensor = load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.gate_up_proj.weight"]
    values = read_all(open_checkpoint(tmp_path))
    assert torch.equal(values["model.layers.0.mlp.gate_proj"], tensor[:48])
    assert torch.equal(values["model.layers.0.mlp.up_proj"], tensor[48:])


def test_a_name_of_several_lines_passes_for_no_line_of_ours(tmp_path):
    forged = {"model.layers.0.a.weight\nwrote map.json": torch.zeros(3, 3)}
    save_file(forged, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a\.safetensors: 'model.*\\n.*' is no name of a tensor"):
        open_checkpoint(str(tmp_path / "a.safetensors"))

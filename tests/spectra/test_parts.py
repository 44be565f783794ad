"""Layers of several matrices: each matrix is compressed, and the layer is the model's own again."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.phi3.modeling_phi3 import Phi3Attention

import spectra
from spectra.calibration.options import Calibration
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.checkpoint.spectra_config import SpectraConfig
from spectra.compression.calibrated import calibrate, calibration_text
from spectra.compression.compress import compress
from spectra.compression.merge import merge
from spectra.compression.plan import NEVER_REACHED
from spectra.compression.settings import Settings
from spectra.machine.progress import silent
from spectra.models.lowrank import put_dense
from spectra.models.parts import take_apart
from spectra.models.places import SEVERAL, TAKEN, places_of
from spectra.models.source import Source
from spectra.pruning.prune import prune
from spectra.pruning.sparsity import Pattern
from spectra.storages.layer import CompressedLinear
from spectra_data.errors import InputError
from tests.small import random_batch
from tests.spectra.checkpoints import rewritten, saved

OFTEN = ["gpt_neox", "gpt2", "phi3", "mixtral", "gpt_oss"]
"""A fused layer in groups of heads, transposed ones, fused ones in turn, experts that only the
model stacks, and stacks whose rows alternate.
"""
SELDOM = [
    "bloom", "deepseek_v3", "falcon", "glm", "gpt_bigcode", "granitemoe", "llama4_text", "mpt",
    "olmoe", "persimmon", "qwen2_moe", "qwen3_moe",
]  # fmt: skip


def of_families(often):
    """Parameters of a test: those families among the quick ones, all others among the slow."""
    slow = [pytest.param(f, marks=pytest.mark.slow) for f in (*OFTEN, *SELDOM) if f not in often]
    return pytest.mark.parametrize("family", [*often, *slow])


families, few = of_families(OFTEN), of_families(["gpt_neox", "mixtral"])
OWN = Calibration(windows=4, length=16)
TOKENS = random_batch(1)


def uniform(folder, err=0.4):
    """A map of the same share of every rank; with 0.4, square matrices stay whole."""
    scan = spectra.scan(str(folder), folder.parent / "scan.zarr")
    return spectra.allocate(scan, method="uniform", err=err)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def weights(folder):
    opened = open_checkpoint(str(folder))
    return {matrix.name: opened.read(matrix) for matrix in opened.matrices}


def truncated(weight, rank):
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


@families
@pytest.mark.parametrize("storage", ["factors", pytest.param("pivoted", marks=pytest.mark.slow)])
def test_every_matrix_of_a_map_is_compressed_and_merged_back(tmp_path, family, storage):
    saved(tmp_path / "m", family)
    rank_map = uniform(tmp_path / "m", err=0.6)
    wanted = {m.name: m for m in rank_map.modules if m.factored}
    assert len(wanted) == len(rank_map.modules)
    made = compress(str(tmp_path / "m"), rank_map, tmp_path / "c", storage=storage)
    by_name = {n for n, why in made.left_dense.items() if why.startswith("its model's code reads")}
    assert set(made.left_dense) == by_name
    assert not by_name or family == "bloom"  # whose code has another way of running them

    low = loaded(made.path)
    layers = {n for n, m in low.named_modules() if isinstance(m, CompressedLinear)}
    assert layers == {m.name for m in made.rank_map.modules if m.factored} == set(wanted) - by_name

    dense = loaded(merge(str(made.path), tmp_path / "dense").path)
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("m", "dense"))
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in other.items()}
    torch.testing.assert_close(logits(low), logits(dense), rtol=1e-4, atol=1e-5)
    before, after, read = (weights(tmp_path / name) for name in ("m", "dense", "c"))
    assert before.keys() == after.keys() == read.keys()
    for name, weight in before.items():
        assert torch.equal(after[name], read[name])
        if name in layers:
            expected = truncated(weight, wanted[name].rank)
            torch.testing.assert_close(after[name].double(), expected, rtol=0, atol=1e-5)
        else:
            assert torch.equal(after[name], weight)


@few
def test_a_compressed_model_is_saved_and_made_dense_as_any(tmp_path, family):
    model = saved(tmp_path / "m", family)
    made = compress(str(tmp_path / "m"), uniform(tmp_path / "m"), tmp_path / "c")
    low = loaded(made.path)
    wanted = logits(low)
    low.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(loaded(tmp_path / "again")), wanted)
    for name, weight in weights(made.path).items():
        assert torch.equal(weights(tmp_path / "again")[name], weight)
    dense = low.dequantize()
    assert {n: p.shape for n, p in dense.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    for one, other in zip(dense.modules(), model.modules(), strict=True):
        assert isinstance(other, type(one))
    torch.testing.assert_close(logits(dense), wanted, rtol=1e-4, atol=1e-5)


@families
def test_a_model_that_is_taken_apart_computes_the_same(tmp_path, family):
    model = saved(tmp_path / "m", family)
    wanted = logits(model)
    places = places_of(Source(str(tmp_path / "m"))).parts
    take_apart(model, places)
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-6)
    found = weights(tmp_path / "m")
    for name in places:
        assert torch.equal(model.get_submodule(name).weight, found[name])
    rank_map = uniform(tmp_path / "m")
    put_dense(model, SpectraConfig(rank_map, places=places))
    torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-6)


@few
@pytest.mark.parametrize("method", ["fisher", "sequential"])
def test_every_method_reaches_every_matrix(tmp_path, family, method):
    saved(tmp_path / "m", family)
    options = {"method": method, "calibration": OWN}
    if method == "sequential":
        made = compress(str(tmp_path / "m"), uniform(tmp_path / "m"), tmp_path / "c", **options)
    else:
        options |= {"budget": 0.8, "align": 1}
        made = compress(str(tmp_path / "m"), None, tmp_path / "c", **options)
        assert made.rank_map.budget == pytest.approx(0.8, abs=0.01)
    assert not made.left_dense or family == "bloom"
    assert logits(loaded(made.path)).isfinite().all()


@few
def test_the_least_expected_loss_is_less_than_that_of_plain_truncation(tmp_path, family):
    model = saved(tmp_path / "m", family)
    wanted = logits(model).log_softmax(-1)

    def loss(path):
        found = logits(loaded(path)).log_softmax(-1)
        return float((wanted.exp() * (wanted - found)).sum(-1).mean())

    ways = {"budget": 0.7, "align": 1}
    fisher = compress(str(tmp_path / "m"), None, tmp_path / "f", calibration=OWN, **ways)
    svd = compress(str(tmp_path / "m"), None, tmp_path / "s", method="svd", **ways)
    assert loss(fisher.path) < loss(svd.path)


def never_chosen(folder):
    """A Mixtral of five experts, of which one gets no token."""
    saved(folder, "mixtral", num_local_experts=5)

    def routed(tensors):
        for layer in (0, 1):
            gate = tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
            gate[1], gate[2], gate[3], gate[4] = gate[0], -gate[0], -gate[0], 0

    rewritten(folder, routed)


def test_an_expert_that_no_token_reaches_stays_whole_and_is_listed(tmp_path):
    never_chosen(tmp_path / "m")
    made = compress(str(tmp_path / "m"), None, tmp_path / "c", budget=0.8, align=1, calibration=OWN)
    unreached = {
        f"model.layers.{i}.mlp.experts.4.{role}_proj"
        for i in (0, 1)
        for role in ("gate", "up", "down")
    }
    assert made.left_dense == dict.fromkeys(unreached, NEVER_REACHED)
    assert not any(m.factored for m in made.rank_map.modules if m.name in unreached)
    with pytest.raises(InputError, match=r"experts\.4\..*: calibration never reached its layer"):
        compress(
            str(tmp_path / "m"), uniform(tmp_path / "m"), tmp_path / "d", method="whiten",
            calibration=OWN,
        )  # fmt: skip


def test_an_experts_loss_counts_the_tokens_that_it_gets(tmp_path):
    model = saved(tmp_path / "m", "mixtral")
    source = Source(str(tmp_path / "m"))
    settings = Settings("whiten", OWN, shrinkage=0.0)
    windows, _ = calibration_text(source, OWN, "cpu")
    found = calibrate(source, settings, "cpu", silent)
    take_apart(model, places_of(source).parts)
    sums = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".layers." in name:

            def add(_, __, out, name=name):
                sums[name] = sums.get(name, 0) + float(out.square().sum())

            layer.register_forward_hook(add)
    with torch.no_grad():
        model(input_ids=windows)
    for matrix in source.checkpoint.matrices:
        spectrum = found.of(matrix.name).spectrum(None)
        wanted = sums[matrix.name] / windows.numel()
        assert float(spectrum.square().sum()) == pytest.approx(wanted, rel=1e-3)


@few
def test_zeros_are_put_into_every_matrix(tmp_path, family):
    saved(tmp_path / "m", family)
    made = prune(str(tmp_path / "m"), tmp_path / "p", Pattern(0.5), method="wanda", calibration=OWN)
    before, after = weights(tmp_path / "m"), weights(made.path)
    assert set(made.matrices) == set(before)
    for name, weight in after.items():
        assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
        assert torch.equal(weight[weight != 0], before[name][weight != 0])
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("m", "p"))
    inside = {p.stored.tensor for p in places_of(Source(str(tmp_path / "m"))).parts.values()}
    inside |= {f"{name}.weight" for name in before}
    assert all(torch.equal(other[n], t) for n, t in one.items() if n in other and n not in inside)
    assert logits(loaded(made.path)).isfinite().all()


def test_dense_matrices_of_a_compressed_checkpoint_are_pruned_too(tmp_path):
    saved(tmp_path / "m", "phi3")
    made = compress(str(tmp_path / "m"), uniform(tmp_path / "m"), tmp_path / "c")
    factored = {m.name for m in made.rank_map.modules if m.factored}
    pruned = prune(str(made.path), tmp_path / "p", Pattern(0.5), method="magnitude")
    after = weights(pruned.path)
    assert set(pruned.matrices) == set(after) - factored
    for name, weight in weights(made.path).items():
        if name in factored:
            assert torch.equal(after[name], weight)
        else:
            assert float((after[name] == 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_a_part_that_is_missing_or_altered_is_named(tmp_path):
    saved(tmp_path / "m", "phi3")
    made = compress(str(tmp_path / "m"), uniform(tmp_path / "m"), tmp_path / "c")
    dense = next(m.name for m in made.rank_map.modules if not m.factored and "q_proj" in m.name)
    original = (made.path / "model.safetensors").read_bytes()

    def altered(tensors):
        tensors[f"{dense}.weight"][0, 0] += 1

    def lost(tensors):
        del tensors[f"{dense}.weight"]

    for change, said in ((altered, "is not what was written"), (lost, "is missing")):
        rewritten(made.path, change)
        with pytest.raises(Exception, match=f"{dense}.weight {said}"):
            loaded(made.path)
        with pytest.raises(InputError, match=f"{dense}.weight"):
            merge(str(made.path), tmp_path / f"dense {said}")
        (made.path / "model.safetensors").write_bytes(original)


def test_a_layer_is_taken_apart_whole_or_not_at_all(tmp_path, monkeypatch):
    saved(tmp_path / "m", "phi3")
    monkeypatch.setattr(Phi3Attention, "q_proj", property(lambda self: None), raising=False)
    made = compress(str(tmp_path / "m"), uniform(tmp_path / "m", err=0.6), tmp_path / "c")
    left = {f"model.layers.{i}.self_attn.{role}_proj" for i in (0, 1) for role in "qkv"}
    assert made.left_dense == dict.fromkeys(left, TAKEN)


def test_a_block_that_a_model_uses_at_several_places_stays_whole(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
             "num_hidden_layers": 4, "num_key_value_heads": 4, "mamba_d_state": 8,
             "n_mamba_heads": 2, "hybrid_layer_ids": [1, 3], "num_mem_blocks": 1,
             "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]}  # fmt: skip
    config = AutoConfig.for_model("zamba2", vocab_size=64, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    made = compress(str(tmp_path / "m"), uniform(tmp_path / "m", err=0.6), tmp_path / "c")
    shared = {name for name in made.left_dense if "shared_transformer" in name}
    assert shared
    assert all(made.left_dense[name] == SEVERAL for name in shared)
    assert logits(loaded(made.path)).isfinite().all()


def test_adapters_are_not_lost_where_a_model_is_made_dense(tmp_path):
    saved(tmp_path / "m", "phi3")
    low = loaded(compress(str(tmp_path / "m"), uniform(tmp_path / "m"), tmp_path / "c").path)
    low.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    wanted = logits(low)
    with pytest.raises(InputError, match="q_proj still has adapters: merge them"):
        low.dequantize()
    assert torch.equal(logits(low), wanted)


@pytest.mark.parametrize("family", ["mixtral", "gpt_neox"])
def test_what_was_made_dense_is_as_if_it_had_never_been_compressed(tmp_path, family):
    saved(tmp_path / "m", family)
    ways = loaded(tmp_path / "m").config._experts_implementation
    low = loaded(compress(str(tmp_path / "m"), uniform(tmp_path / "m"), tmp_path / "c").path)
    dense = low.dequantize()
    assert dense.config._experts_implementation == ways
    dense.save_pretrained(tmp_path / "dense")
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("m", "dense"))
    assert one.keys() == other.keys()


def test_a_model_is_trained_after_it_was_run_for_inference(tmp_path):
    saved(tmp_path / "m", "gpt_neox")
    low = loaded(compress(str(tmp_path / "m"), uniform(tmp_path / "m"), tmp_path / "c").path)
    with torch.inference_mode():
        low(input_ids=TOKENS)
    low.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert all(p.grad is not None for p in low.parameters())


def test_what_cannot_run_says_why(tmp_path):
    saved(tmp_path / "m", "mixtral")
    low = loaded(compress(str(tmp_path / "m"), uniform(tmp_path / "m"), tmp_path / "c").path)
    low.set_experts_implementation("grouped_mm")
    with pytest.raises(AttributeError, match="experts of a compressed model have no transpose"):
        low(input_ids=TOKENS)
    with pytest.raises(InputError, match="use DistributedDataParallel"):
        low.model.layers[0].mlp.experts.gate_up_proj._replicate_for_data_parallel()

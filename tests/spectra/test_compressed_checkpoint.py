"""A compressed checkpoint is an ordinary Hugging Face folder once spectra is imported."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import spectra
from spectra.calibration.options import Calibration
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.cli import main
from spectra.compression.compress import compress
from spectra.compression.merge import merge
from spectra.compression.skeleton import READS_WEIGHT
from spectra.storages.factors_layer import LowRankLinear
from spectra.storages.pivoted_layer import PivotedLinear
from spectra_data.errors import InputError
from tests.small import random_batch
from tests.spectra.checkpoints import saved

Q = "model.layers.0.self_attn.q_proj"
TOKENS = random_batch(1)


STORAGES = ("factors", "pivoted")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small LLaMA, and compressed in a folder for each storage."""
    folder = tmp_path_factory.mktemp("made")
    saved(folder / "m")
    scan = spectra.scan(str(folder / "m"), folder / "scan.zarr")
    rank_map = spectra.allocate(scan, method="uniform", err=0.6)
    for storage in STORAGES:
        compress(str(folder / "m"), rank_map, folder / storage, storage=storage)
    return folder


@pytest.fixture(params=STORAGES)
def compressed(request, made, tmp_path):
    """A compressed small LLaMA, and in `m` beside it what it was made of."""
    shutil.copytree(made / "m", tmp_path / "m")
    return Path(shutil.copytree(made / request.param, tmp_path / "c"))


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.float()


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
def test_one_ordinary_call_loads_it_in_a_fresh_process(made):
    folders = [str(made / storage) for storage in STORAGES]
    script = (
        f"import spectra\nfrom transformers import AutoModelForCausalLM\n"
        f"for folder in {folders}:\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder)\n"
        f"    print(type(model.get_submodule({Q!r})).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["LowRankLinear", "PivotedLinear"], done.stderr


def test_importing_spectra_imports_neither_torch_nor_transformers():
    script = "import sys, spectra; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_nothing_of_it_is_code_or_pickle(compressed):
    assert {p.suffix for p in compressed.iterdir()} <= {".json", ".safetensors"}
    config = json.loads((compressed / "config.json").read_text())
    assert "auto_map" not in config
    assert config["quantization_config"]["rank_map"]["schema"] == "spectra.rankmap/1"


def test_devices_precisions_saving_and_generating_work(compressed, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(compressed)
    wanted = logits(model)
    placed = AutoModelForCausalLM.from_pretrained(compressed, device_map="cpu")
    assert torch.equal(logits(placed), wanted)
    rounded = AutoModelForCausalLM.from_pretrained(compressed, dtype=torch.bfloat16)
    layer = rounded.get_submodule(Q)
    assert isinstance(layer, LowRankLinear | PivotedLinear)
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(rounded), wanted, atol=0.05, rtol=0.1)
    out = model.generate(TOKENS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert out.shape == (4, 20)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), wanted)
    rounded.save_pretrained(tmp_path / "rounded")
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "rounded")), logits(rounded)
    )


@pytest.mark.parametrize("first", ["nothing", "save", "round"])
def test_a_loaded_model_becomes_dense(compressed, tmp_path, first):
    model = AutoModelForCausalLM.from_pretrained(compressed)
    if first == "save":
        model.save_pretrained(tmp_path / "again")
    if first == "round":
        model = model.to(torch.bfloat16)  # of which its configuration knows nothing
    wanted, dtype = logits(model), next(model.parameters()).dtype
    made = model.dequantize()
    assert type(made.get_submodule(Q)) is torch.nn.Linear
    assert {p.dtype for p in made.parameters()} == {dtype}
    close = {"atol": 0.05, "rtol": 0.1} if first == "round" else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(logits(made), wanted, **close)
    made.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(logits(loaded), logits(made), **close)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_dense_model_has_the_dtype_that_is_named(compressed, dtype):
    made = AutoModelForCausalLM.from_pretrained(compressed).dequantize(dtype=dtype)
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert logits(made).isfinite().all()


def test_blocks_that_lie_on_disk_run_as_well(compressed, tmp_path):
    wanted = logits(AutoModelForCausalLM.from_pretrained(compressed))
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        compressed, device_map=places, offload_folder=tmp_path / "offload"
    )
    torch.testing.assert_close(logits(model), wanted)


def test_factors_are_parameters_that_train(compressed):
    model = AutoModelForCausalLM.from_pretrained(compressed)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    layer = model.get_submodule(Q)
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_merge_writes_a_dense_checkpoint(compressed, tmp_path):
    wanted = logits(AutoModelForCausalLM.from_pretrained(compressed))
    made = merge(str(compressed), tmp_path / "dense")
    assert made.merged == 14
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(made.path)), wanted, atol=2e-5, rtol=1e-4
    )
    dequantised = AutoModelForCausalLM.from_pretrained(compressed).dequantize()
    torch.testing.assert_close(logits(dequantised), wanted, atol=2e-5, rtol=1e-4)
    assert main(["merge", str(tmp_path / "m"), "--out", str(tmp_path / "x")]) == 2


def test_merge_rounds_where_it_is_asked_to(compressed, tmp_path):
    made = merge(str(compressed), tmp_path / "dense", dtype="bfloat16")
    tensors = load_file(made.path / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert json.loads((made.path / "config.json").read_text())["dtype"] == "bfloat16"


def first(tensors):
    return next(n for n in sorted(tensors) if n.endswith((".B", ".coefficients")))


def test_a_changed_number_is_noticed(compressed, monkeypatch):
    def flipped(tensors):
        tensors[first(tensors)][0, 0] += 1e-3

    change(compressed, flipped)
    with pytest.raises(InputError, match="is not what was written"):
        AutoModelForCausalLM.from_pretrained(compressed)
    monkeypatch.setenv("SPECTRA_SKIP_HASHES", "1")
    AutoModelForCausalLM.from_pretrained(compressed)


def test_a_missing_tensor_or_another_shape_is_noticed(compressed):
    def dropped(tensors):
        del tensors[first(tensors)]

    def narrowed(tensors):
        name = first(tensors)
        tensors[name] = tensors[name][:-1].contiguous()

    whole = (compressed / "model.safetensors").read_bytes()
    for edit, message in ((dropped, "is missing"), (narrowed, "its rank map says")):
        change(compressed, edit)
        with pytest.raises(InputError, match=message):
            AutoModelForCausalLM.from_pretrained(compressed)
        (compressed / "model.safetensors").write_bytes(whole)


def test_a_map_of_another_model_is_noticed(compressed):
    path = compressed / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["rank_map"]["modules"][0]["name"] = "model.layers.9.mlp.up_proj"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"layers\.9"):
        AutoModelForCausalLM.from_pretrained(compressed)
    config["quantization_config"]["rank_map"] = {}
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="not a rank map"):
        AutoModelForCausalLM.from_pretrained(compressed)
    config["quantization_config"]["version"] = 2
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="another version"):
        AutoModelForCausalLM.from_pretrained(compressed)


@pytest.mark.parametrize("family", ["gpt_neox", "mixtral", "qwen2", "phi3", "opt"])
def test_what_is_loaded_and_saved_loads_again(tmp_path, family):
    saved(tmp_path / "m", family)
    scan = spectra.scan(str(tmp_path / "m"), tmp_path / "scan.zarr")
    rank_map = spectra.allocate(scan, method="uniform", err=0.6)
    made = compress(str(tmp_path / "m"), rank_map, tmp_path / "c")
    model = AutoModelForCausalLM.from_pretrained(made.path)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    guards = [
        {name for name, t in open_checkpoint(str(folder)).stored.source.tensors.items()
         if t.shape == (0,)}
        for folder in (made.path, tmp_path / "again")
    ]  # fmt: skip
    assert guards[0] == guards[1] != set()


def test_before_spectra_is_imported_it_is_refused_and_a_merged_one_loads(made, tmp_path):
    """In one fresh process for both storages: what it says of each, between lines that name it."""
    for storage in STORAGES:
        merge(str(made / storage), tmp_path / storage)
    script = f"""
import sys
from transformers import AutoModelForCausalLM
for storage in {STORAGES}:
    model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r} + "/" + storage)
    print(type(model.get_submodule({Q!r})).__name__)
for storage in {STORAGES}:
    try:
        AutoModelForCausalLM.from_pretrained({str(made)!r} + "/" + storage)
        print("loaded")
    except Exception:
        print("refused")
    print(f"after {{storage}}", file=sys.stderr, flush=True)
assert "spectra" not in sys.modules
import spectra
for storage in {STORAGES}:
    model = AutoModelForCausalLM.from_pretrained({str(made)!r} + "/" + storage)
    print(type(model.get_submodule({Q!r})).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    said = done.stdout.split()
    assert said[:4] == ["Linear", "Linear", "refused", "refused"], done.stderr
    assert said[4:] == ["LowRankLinear", "PivotedLinear"], done.stderr
    assert done.returncode == 0, done.stderr
    for said in re.split("after \\w+\n", done.stderr)[:2]:
        assert "MISMATCH" in said


def test_checkpoints_of_the_first_format_still_load(compressed, tmp_path):
    wanted = logits(AutoModelForCausalLM.from_pretrained(compressed))
    config = json.loads((compressed / "config.json").read_text())
    described = config["quantization_config"]
    factored = {m["name"] for m in described["rank_map"]["modules"] if m["factored"]}

    def without_guards(named):
        return {k: v for k, v in named.items() if k.removesuffix(".weight") not in factored}

    tensors = without_guards(load_file(compressed / "model.safetensors"))
    save_file(tensors, compressed / "model.safetensors", metadata={"format": "pt"})
    described["sha256"] = without_guards(described["sha256"])
    described["version"] = 1
    (compressed / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(compressed)
    assert torch.equal(logits(model), wanted)
    model.save_pretrained(tmp_path / "again")  # in the format that it has
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), wanted)
    merge(str(compressed), tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(logits(dense), wanted, atol=2e-5, rtol=1e-4)


READING = {
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "llama4_text": {
        "hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "num_local_experts": 2, "max_position_embeddings": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", READING)
@pytest.mark.parametrize("how", ["map", "budget"])
def test_what_is_said_to_be_compressed_can_be_loaded_and_run(tmp_path, family, how):
    sizes = READING[family]
    tokens = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **tokens, **sizes))
    model.save_pretrained(tmp_path / "m")
    scan = spectra.scan(str(tmp_path / "m"), tmp_path / "scan.zarr")
    rank_map, ways = None, {"budget": 0.9, "align": 1}
    if how == "map":
        rank_map, ways = spectra.allocate(scan, method="uniform", err=0.7), {"method": "whiten"}
    text = Calibration(windows=2, length=16)
    made = compress(str(tmp_path / "m"), rank_map, tmp_path / "c", calibration=text, **ways)
    read = [n for n, reason in made.left_dense.items() if reason == READS_WEIGHT]
    assert bool(read) == (family == "mamba" and how == "map")
    loaded = AutoModelForCausalLM.from_pretrained(made.path)
    assert logits(loaded).isfinite().all()


def test_a_model_that_cannot_run_with_low_rank_layers_is_told_before_anything_is_written(
    tmp_path, monkeypatch
):
    saved(tmp_path / "m")
    scan = spectra.scan(str(tmp_path / "m"), tmp_path / "scan.zarr")

    def broken(self, x):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(LowRankLinear, "forward", broken)
    with pytest.raises(InputError, match="does not run with low-rank layers: no such kernel"):
        compress(str(tmp_path / "m"), spectra.allocate(scan, err=0.55), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_damage_is_not_merged(compressed, tmp_path, capsys):
    def flipped(tensors):
        tensors[first(tensors)][0, 0] += 1e-3

    change(compressed, flipped)
    assert main(["merge", str(compressed), "--out", str(tmp_path / "dense")]) == 2
    assert "is not what was written" in capsys.readouterr().err
    assert not (tmp_path / "dense" / "config.json").exists()


def test_damage_is_not_pruned_away(tmp_path, capsys):
    saved(tmp_path / "m")
    scan = spectra.scan(str(tmp_path / "m"), tmp_path / "scan.zarr")
    made = compress(str(tmp_path / "m"), spectra.allocate(scan, err=0.55), tmp_path / "c")

    def flipped(tensors):
        tensors[first(tensors)][0, 0] += 1e-3

    change(made.path, flipped)
    asked = ["--sparsity", "0.5", "--method", "magnitude"]
    assert main(["prune", str(made.path), *asked, "--out", str(tmp_path / "p")]) == 2
    assert "is not what was written" in capsys.readouterr().err
    assert not (tmp_path / "p" / "config.json").exists()

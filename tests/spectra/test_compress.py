"""A checkpoint and a map become a smaller checkpoint, shard by shard."""

import dataclasses
import itertools
import json
import os
import re
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import spectra
from spectra.allocation.rankmap import Module
from spectra.calibration.options import Calibration
from spectra.checkpoint import writer
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.checkpoint.spectra_config import SpectraConfig
from spectra.cli import main
from spectra.compression import calibrated
from spectra.compression import compress as compressing
from spectra.compression.compress import compress, factorised
from spectra.compression.settings import METHODS, Settings
from spectra.compression.weighting import Plain
from spectra.evaluation.perplexity import perplexity, text_tokens
from spectra_data.errors import InputError
from spectra_data.sources import open_source
from spectra_data.tokenizer import load_tokenizer
from tests.forked import Forked
from tests.small import random_batch
from tests.spectra.checkpoints import edit_config, rewritten, saved, sharded

Q = "model.layers.0.self_attn.q_proj"
OWN = Calibration(windows=4, length=16)


def text_of(method):
    return {} if method == "svd" else {"calibration": OWN}


"""Text that the model itself writes."""


def uniform(folder, **target):
    """A map that factors every matrix."""
    scan = spectra.scan(str(folder), folder.parent / "scan.zarr")
    return spectra.allocate(scan, method="uniform", **(target or {"err": 0.6}))


@pytest.fixture
def model(tmp_path):
    """A small LLaMA's folder."""
    saved(tmp_path / "m")
    return tmp_path / "m"


def weights(model):
    return {n: p.detach() for n, p in model.named_parameters()}


def test_the_papers_svd_gives_the_papers_factors(model):
    rank_map = uniform(model)
    made = compress(str(model), rank_map, model.parent / "c")
    dense, stored = (
        load_file(model / "model.safetensors"),
        load_file(made.path / "model.safetensors"),
    )
    for module in rank_map.modules:
        u, s, vh = np.linalg.svd(
            dense[f"{module.name}.weight"].double().numpy(), full_matrices=False
        )
        r = module.rank
        a, b = stored[f"{module.name}.A"].double(), stored[f"{module.name}.B"].double()
        assert a.shape == (module.rows, r)
        np.testing.assert_allclose(a @ b, (u[:, :r] * s[:r]) @ vh[:r], atol=1e-6)
        np.testing.assert_allclose(np.diag(a.mT @ a), s[:r], rtol=1e-4)
    factored = {f"{module.name}.weight" for module in rank_map.modules}
    for name in set(dense) & set(stored) - factored:
        assert torch.equal(dense[name], stored[name]), name


def test_only_what_the_map_factors_is_factored(model):
    scan = spectra.scan(str(model), model.parent / "scan.zarr")
    rank_map = spectra.allocate(scan, err=0.55)  # welore: LRCs alone
    made = compress(str(model), rank_map, model.parent / "c")
    stored = load_file(made.path / "model.safetensors")
    factored = {n.removesuffix(".B") for n in stored if n.endswith(".B")}
    assert factored == {m.name for m in rank_map.lrc}
    assert 0 < len(factored) < 14


@pytest.mark.parametrize("storage", ["factors", "pivoted"])
def test_the_files_budget_is_the_maps(model, storage):
    made = compress(str(model), uniform(model), model.parent / "c", storage=storage)
    stored = load_file(made.path / "model.safetensors")
    blocks = sum(
        t.numel() for n, t in stored.items()
        if ".layers." in n and t.ndim == 2 and t.is_floating_point()
    )  # fmt: skip
    assert blocks == made.rank_map.parameters
    dense = sum(m.params_dense for m in made.rank_map.modules)
    assert made.rank_map.budget == blocks / dense
    assert made.rank_map.storage == storage
    assert made.parameters == sum(t.numel() for t in stored.values() if t.is_floating_point())


def test_both_storages_are_the_same_function(model):
    rank_map = uniform(model)
    tokens = random_batch(1)
    logits = []
    for storage in ("factors", "pivoted"):
        made = compress(str(model), rank_map, model.parent / storage, storage=storage)
        loaded = AutoModelForCausalLM.from_pretrained(made.path)
        with torch.no_grad():
            logits.append(loaded(input_ids=tokens).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_at_full_rank_is_the_model_itself(model, method):
    """Rank one below the full one, of matrices that have no more: nothing is lost."""

    def lower(tensors):
        for name, weight in tensors.items():
            if ".layers." in name and weight.ndim == 2:
                u, s, vh = torch.linalg.svd(weight, full_matrices=False)
                s[len(s) // 4 :] = 0
                tensors[name] = (u * s) @ vh

    rewritten(model, lower)
    rank_map = uniform(model, err=0.7)
    made = compress(str(model), rank_map, model.parent / "c", method=method, **text_of(method))
    tokens = random_batch(1)
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(model)(input_ids=tokens).logits
        found = AutoModelForCausalLM.from_pretrained(made.path)(input_ids=tokens).logits
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    if method != "sequential":  # which is free where there are no inputs
        assert max(m.relative_error for m in made.rank_map.modules) < 1e-3


@pytest.fixture(scope="module")
def stories(shared, tmp_path_factory):
    """A real model, a map that factors all of it, and the perplexity of plain SVD by it."""
    folder = tmp_path_factory.mktemp("stories")
    checkpoint = str(shared / "data" / "checkpoints" / "stories260K")
    scan = spectra.scan(checkpoint, folder / "scan.zarr")
    rank_map = spectra.allocate(scan, method="uniform", err=0.5)
    data = str(shared / "data" / "text" / "wikitext2-valid.txt")
    text = text_tokens(open_source(data), load_tokenizer(checkpoint), limit=4000)

    def measured(path):
        model = AutoModelForCausalLM.from_pretrained(path)
        return perplexity(model, text, seq_len=128, windows=16).nll

    plain = measured(compress(checkpoint, rank_map, folder / "svd").path)
    return checkpoint, rank_map, Calibration(data, windows=16, length=128), measured, plain


@pytest.mark.parametrize(
    "method",
    [
        "whiten",
        "fisher",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("asvd", "sequential")),
    ],
)
def test_calibrated_methods_lose_less_than_svd(stories, tmp_path, method):
    checkpoint, rank_map, calibration, measured, plain = stories
    made = compress(checkpoint, rank_map, tmp_path / "c", method=method, calibration=calibration)
    assert measured(made.path) < plain - 0.2
    about = json.loads((made.path / "config.json").read_text())["quantization_config"][
        "compression"
    ]
    assert about["calibration"]["windows"] == 16
    assert len(about["tokenizer_sha256"]) == len(about["tokens_sha256"]) == 64


def test_biases_are_kept(tmp_path):
    saved(tmp_path / "m", "qwen2")
    biases = {}

    def filled(tensors):
        for name in tensors:
            if name.endswith("_proj.bias"):
                tensors[name] = torch.randn_like(tensors[name])
                biases[name] = tensors[name]

    rewritten(tmp_path / "m", filled)
    for storage in ("factors", "pivoted"):
        made = compress(
            str(tmp_path / "m"), uniform(tmp_path / "m"), tmp_path / storage, storage=storage
        )
        loaded = AutoModelForCausalLM.from_pretrained(made.path)
        assert biases
        for name, bias in biases.items():
            assert torch.equal(loaded.get_parameter(name), bias)


def test_a_sharded_checkpoint_gives_what_a_whole_one_gives(tmp_path, model):
    sharded(tmp_path / "s")
    rank_map = uniform(model)
    one = compress(str(model), rank_map, tmp_path / "one")
    other = compress(str(tmp_path / "s"), rank_map, tmp_path / "other", shard_bytes=20_000)
    index = json.loads((other.path / "model.safetensors.index.json").read_text())
    held = {}
    for file in set(index["weight_map"].values()):
        held |= load_file(other.path / file)
    whole = load_file(one.path / "model.safetensors")
    assert held.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(held[name], whole[name]) for name in held)
    assert len(set(index["weight_map"].values())) > 2
    tokens = random_batch(1)
    logits = [
        AutoModelForCausalLM.from_pretrained(p.path)(input_ids=tokens).logits for p in (one, other)
    ]
    assert torch.equal(*logits)


def test_an_interrupted_call_goes_on_and_gives_the_same_files(model, tmp_path, monkeypatch):
    rank_map = uniform(model)
    whole = compress(str(model), rank_map, tmp_path / "whole", shard_bytes=20_000)
    made, left = [], 3
    write = writer._write

    def killed(path, *rest):
        if len(made) == left:
            raise KeyboardInterrupt
        made.append(path.name)
        return write(path, *rest)

    monkeypatch.setattr(writer, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        compress(str(model), rank_map, tmp_path / "c", shard_bytes=20_000)
    assert not (tmp_path / "c" / "config.json").exists()  # no checkpoint yet
    with pytest.raises(InputError, match="holds another partial result"):
        compress(str(model), uniform(model, err=0.7), tmp_path / "c", shard_bytes=20_000)
    left = 100
    damaged = tmp_path / "c" / made[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")  # its last entry is another one now
    again = compress(str(model), rank_map, tmp_path / "c", shard_bytes=20_000)
    assert again.reused > 0
    files = sorted(p.name for p in whole.path.iterdir())
    assert files == sorted(p.name for p in again.path.iterdir())
    for name in files:
        assert (whole.path / name).read_bytes() == (again.path / name).read_bytes(), name


def killed_after_three_shards(*arguments):
    written = itertools.count(1)
    write = writer.write_weights

    def counted(*given):
        write(*given)
        if next(written) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    writer.write_weights = counted
    compress(*arguments, shard_bytes=20_000)


def test_a_killed_process_leaves_whole_shards_only(model, tmp_path):
    given = (str(model), uniform(model), tmp_path / "c")
    process = Forked(killed_after_three_shards, *given)
    assert process.wait() == -signal.SIGKILL
    for file in (tmp_path / "c").glob("model*.safetensors"):
        assert load_file(file)
    made = compress(*given, shard_bytes=20_000)
    assert made.reused > 0
    assert not list(made.path.glob(".*partial"))
    AutoModelForCausalLM.from_pretrained(made.path)


def test_a_budget_is_reached_by_one_call(model):
    made = compress(str(model), None, model.parent / "c", budget=0.7, align=1, calibration=OWN)
    assert 0.69 < made.rank_map.budget <= 0.7
    assert made.rank_map.method == "loss"
    assert made.rank_map.storage == "pivoted"
    assert made.compression["method"] == "fisher"
    assert made.rank_map.asked["budget"] == 0.7


@pytest.mark.parametrize(("storage", "align"), [("factors", 1), ("pivoted", 1), ("pivoted", 8)])
@pytest.mark.parametrize("family", ["llama", "phi3"])  # phi3 has fused layers
def test_an_unreachable_budget_is_refused_before_calibration(
    tmp_path, monkeypatch, family, storage, align
):
    saved(tmp_path / "m", family)
    m, budget = str(tmp_path / "m"), 0.001
    options = {"storage": storage, "align": align, "calibration": OWN}
    with monkeypatch.context() as patch:
        patch.setattr("spectra.compression.plan.calibrate", lambda *_: pytest.fail("calibrated"))
        with pytest.raises(InputError, match=r"budget of 0.001 cannot be reached") as refused:
            compress(m, None, tmp_path / "no", budget=budget, **options)
    least = float(re.search(r"ranks allow (0\.\d{4}) to 1$", str(refused.value))[1])
    assert compress(m, None, tmp_path / "c", budget=least, **options).rank_map.budget <= least
    with pytest.raises(InputError, match="cannot be reached"):
        compress(m, None, tmp_path / "less", budget=least - 2e-4, **options)


def test_a_map_that_factors_nothing_is_refused_before_calibration(model, monkeypatch):
    monkeypatch.setattr("spectra.compression.plan.calibrate", lambda *_: pytest.fail("calibrated"))
    with pytest.raises(InputError, match="no matrix would be factored"):
        compress(str(model), uniform(model, err=0.0), model.parent / "c", method="whiten")


def test_the_least_expected_loss_is_chosen_over_all_matrices(model):
    """Matrices whose outputs reach nothing are cut first."""

    def silenced(tensors):
        tensors["model.layers.1.self_attn.o_proj.weight"] *= 1e-4

    rewritten(model, silenced)
    made = compress(str(model), None, model.parent / "c", budget=0.6, align=1, calibration=OWN)
    kept = {m.name: m.params / m.params_dense for m in made.rank_map.modules}
    first, second = (kept[f"model.layers.{i}.self_attn.v_proj"] for i in (0, 1))
    assert second < 0.3 * first


@pytest.mark.parametrize("method", ["svd", "whiten"])
def test_a_weight_that_is_not_finite_stops_with_its_name(model, method):
    rank_map = uniform(model)

    def spoilt(tensors):
        tensors[f"{Q}.weight"][3, 3] = torch.nan

    rewritten(model, spoilt)
    with pytest.raises(InputError, match=r"layers\.0\."):
        compress(str(model), rank_map, model.parent / "c", method=method, **text_of(method))
    assert not (model.parent / "c" / "config.json").exists()


def test_a_map_of_other_weights_is_refused(model):
    rank_map = uniform(model)

    def changed(tensors):
        tensors[f"{Q}.weight"] += 1e-3

    rewritten(model, changed)
    with pytest.raises(InputError, match="its weights hash to"):
        compress(str(model), rank_map, model.parent / "c")
    assert not (model.parent / "c" / "config.json").exists()
    compress(str(model), rank_map, model.parent / "d", check_weights=False)


def test_statistics_are_known_by_tokens_weights_and_seed(tmp_path, monkeypatch):
    model = tmp_path / "m"
    saved(model, seed=7)  # no other test's
    taken = []
    take = calibrated._take
    monkeypatch.setattr(calibrated, "_take", lambda *a: (taken.append(a[1].key), take(*a)))
    rank_map = uniform(model)

    def run(name, method, **calibration):
        compress(
            str(model), rank_map, model.parent / name, method=method, check_weights=False,
            calibration=dataclasses.replace(OWN, **calibration),
        )  # fmt: skip

    run("a", "fisher")
    run("b", "fisher")
    assert len(taken) == 1
    run("c", "whiten")
    run("d", "whiten")
    assert len(taken) == 2
    run("e", "fisher", windows=5)
    run("f", "fisher", length=12)
    run("g", "fisher", seed=1)
    assert len(set(taken)) == 5

    def changed(tensors):
        tensors["model.embed_tokens.weight"] += 0  # not a matrix
        tensors[f"{Q}.weight"] += 1e-3

    rewritten(model, changed)
    run("h", "fisher")
    assert len(set(taken)) == 6


def test_compressed_checkpoints_cannot_be_compressed_again(model):
    made = compress(str(model), uniform(model), model.parent / "c")
    with pytest.raises(InputError, match="already quantised or compressed"):
        compress(str(made.path), None, model.parent / "d", budget=0.5)


def test_a_compressed_checkpoint_is_scanned_as_its_products(model):
    made = compress(str(model), uniform(model), model.parent / "c", storage="pivoted")
    opened = open_checkpoint(str(made.path))
    assert {m.name for m in opened.matrices} == {m.name for m in made.rank_map.modules}
    scan = spectra.scan(str(made.path), model.parent / "c.zarr")
    values = scan["spectra"].weight.sel(matrix=Q).isel(step=0).to_numpy()
    rank = made.rank_map[Q].rank
    assert (values[rank:32] < 1e-5 * values[0]).all()
    assert values[rank - 1] > 1e-3 * values[0]


def test_settings_are_checked():
    with pytest.raises(InputError, match="no method"):
        Settings("magic")
    with pytest.raises(InputError, match="shrinkage"):
        Settings("fisher", shrinkage=1.0)
    with pytest.raises(InputError, match="windows is at least 1"):
        Calibration(windows=0)


def test_the_command_prints_what_design_names(model, capsys):
    uniform(model).save(model.parent / "map.json")
    arguments = ["compress", str(model), "--map", str(model.parent / "map.json")]
    assert main([*arguments, "--out", str(model.parent / "c"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    keys = ["err_asked", "err", "budget", "threshold", "lrc", "nlrc", "parameters", "bytes"]
    assert set(keys) <= found.keys()
    config = json.loads((model.parent / "c" / "config.json").read_text())
    assert SpectraConfig.of(config).rank_map.budget == found["budget"]
    assert main([*arguments, "--out", str(model.parent / "d")]) == 0
    assert "block parameters" in capsys.readouterr().out
    assert main([*arguments, "--out", str(model.parent / "c")]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "c"], "name either --map or --budget"),
        (["--out", "c", "--budget", "1.5"], "a budget is a fraction"),
        (["--out", "c", "--budget", "0.001"], "cannot be reached"),
        (["--out", "c", "--map", "none.json"], "cannot read none.json"),
        (["--out", "c", "--budget", "0.8", "--calibration", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_wrong_input_is_one_line(model, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(model.parent)
    options = ["--windows", "2", "--seq-len", "8"]
    assert main(["compress", str(model), *arguments, *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert not (model.parent / "c" / "config.json").exists()


def test_a_quantised_checkpoint_is_refused(model):
    rank_map = uniform(model)
    edit_config(model, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(InputError, match="quantised"):
        compress(str(model), rank_map, model.parent / "c")


def test_statistics_of_another_model_are_never_taken(tmp_path):
    """Norms and embeddings count, though no rank map knows them."""
    for name in ("one", "two"):
        saved(tmp_path / name, seed=11)

    def scaled(tensors):
        tensors["model.norm.weight"] *= 3
        tensors["model.layers.0.input_layernorm.weight"] *= 3

    rewritten(tmp_path / "two", scaled)
    taken = []
    for name in ("one", "two"):
        made = compress(
            str(tmp_path / name), None, tmp_path / f"{name}-c", budget=0.7, align=1, calibration=OWN
        )
        taken.append(made.rank_map.ranks)
    assert taken[0] != taken[1]


def test_what_an_interrupted_call_wrote_of_other_weights_is_not_used(model, tmp_path, monkeypatch):
    rank_map = uniform(model)
    with monkeypatch.context() as patch:
        patch.setattr(compressing, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compress(str(model), rank_map, tmp_path / "c")

    def changed(tensors):
        tensors["model.norm.weight"] *= 3

    rewritten(model, changed)
    with pytest.raises(InputError, match="holds another partial result"):
        compress(str(model), rank_map, tmp_path / "c")


def test_numbers_too_large_for_a_dtype_stop_with_their_name(model):
    rank_map = uniform(model)

    def large(tensors):
        tensors["model.norm.weight"] *= 1e6

    rewritten(model, large)
    with pytest.raises(InputError, match=r"model\.norm\.weight holds numbers that are too large"):
        compress(str(model), rank_map, model.parent / "c", dtype="float16")


def test_numbers_too_small_for_a_dtype_stop_with_their_name(model):
    rank_map = uniform(model)
    rewritten(model, lambda tensors: tensors["model.norm.weight"].mul_(1e-12))
    with pytest.raises(InputError, match=r"model\.norm\.weight holds numbers that are too small"):
        compress(str(model), rank_map, model.parent / "c", dtype="float16")
    rewritten(model, lambda tensors: tensors["model.norm.weight"].mul_(1e12))
    rewritten(model, lambda tensors: tensors[f"{Q}.weight"].mul_(1e-30))
    with pytest.raises(InputError, match=f"{Q}: its factors are too small for F16"):
        compress(str(model), rank_map, model.parent / "d", dtype="float16", check_weights=False)


ENDS = {torch.float64: 900, torch.float32: 110, torch.bfloat16: 110, torch.float16: 8}


@pytest.mark.parametrize("dtype", ENDS)
@pytest.mark.parametrize("storage", ["factors", "pivoted"])
@pytest.mark.parametrize("side", [40, 1030])
def test_the_stated_error_is_the_same_at_every_scale_of_a_dtype(dtype, storage, side):
    draw = torch.Generator().manual_seed(0)
    low = torch.randn(side, 8, generator=draw) @ torch.randn(8, side, generator=draw)
    weight = (low + 0.3 * torch.randn(side, side, generator=draw)).to(dtype)
    module = Module("m", 0, "q", side, side, side, 8, "LRC", True, 0.0, side**2, 16 * side)
    exact = torch.linalg.svdvals(weight.double())
    least = float(exact[8:].norm() / exact.norm())
    for power in (-ENDS[dtype], 0, ENDS[dtype]):
        scaled = (weight.double() * 2.0**power).to(dtype)
        tensors, error = factorised(scaled, module, Plain(), storage, dtype)
        assert error == pytest.approx(least, rel=1e-2), power
        if storage == "factors":  # balanced, so that neither leaves the range
            a, b = (float(tensors[name].double().norm()) for name in ("m.A", "m.B"))
            assert 0.1 < a / b < 10


def test_the_configuration_says_what_weights_are_stored_as(model):
    made = compress(str(model), uniform(model), model.parent / "c", dtype="bfloat16")
    assert json.loads((made.path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {m.dtype for m in AutoModelForCausalLM.from_pretrained(made.path).parameters()} == {
        torch.bfloat16
    }


def test_a_map_of_other_fused_weights_is_refused(tmp_path):
    saved(tmp_path / "m", "phi3")
    saved(tmp_path / "n", "phi3", seed=5)
    with pytest.raises(InputError, match="its weights hash to"):
        compress(str(tmp_path / "n"), uniform(tmp_path / "m"), tmp_path / "c")


BUFFERED = {
    "gpt_neo": {"num_layers": 2, "hidden_size": 32, "num_heads": 4,
                "attention_types": [[["global"], 2]]},
    "gptj": {"n_layer": 2, "n_embd": 32, "n_head": 4, "rotary_dim": 4, "n_positions": 64},
}  # fmt: skip


@pytest.mark.parametrize("family", BUFFERED)
def test_blocks_with_buffers_are_calibrated(tmp_path, family):
    tokens = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model(family, **tokens, **BUFFERED[family])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    made = compress(str(tmp_path / "m"), None, tmp_path / "c", budget=0.8, align=1, calibration=OWN)
    assert made.rank_map.budget <= 0.8


def test_calibration_longer_than_the_model_and_unused_options_are_refused(model, capsys):
    with pytest.raises(InputError, match="takes 64 tokens"):
        compress(
            str(model), None, model.parent / "c", budget=0.8, calibration=Calibration(length=100)
        )
    with pytest.raises(InputError, match="sequential needs a map"):
        compress(str(model), None, model.parent / "c", budget=0.7, method="sequential")
    uniform(model).save(model.parent / "map.json")
    given = ["compress", str(model), "--map", str(model.parent / "map.json")]
    given += ["--out", str(model.parent / "c")]
    assert main([*given, "--calibration", "pydocs"]) == 2
    assert "svd is data-free: name another method, or leave the options" in capsys.readouterr().err
    assert main([*given, "--windows", "8"]) == 2
    assert "svd is data-free: name another method, or leave the options" in capsys.readouterr().err
    assert main([*given, "--shrinkage", "0.1"]) == 2
    assert "svd is data-free: name another method, or leave shrinkage" in capsys.readouterr().err
    assert main([*given, "--align", "8"]) == 2
    assert "align is for a budget" in capsys.readouterr().err

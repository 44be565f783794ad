"""Pruning against independent transcriptions of the formulas, and as a command."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

import spectra
from spectra.calibration.options import Calibration
from spectra.calibration.statistics import INPUTS, BlockStatistics, watching
from spectra.cli import main
from spectra.compression.compress import compress
from spectra.compression.scratch import Scratch
from spectra.models.source import Source
from spectra.pruning.prune import UNREACHED, prune
from spectra.pruning.sparsity import Pattern, least, magnitude, parse_pattern, sparsegpt, wanda
from spectra.storages.registry import STORAGES
from spectra_data.errors import InputError
from tests.small import random_batch
from tests.spectra.checkpoints import rewritten, saved
from tests.spectra.interruption import StoppedError, stopped_at

OWN = Calibration(windows=4, length=16)
Q = "model.layers.0.self_attn.q_proj"


def problem(rows=12, cols=32, tokens=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, cols, generator=generator)
    mix = torch.randn(cols, cols, generator=generator)
    x = torch.randn(tokens, cols, generator=generator) @ mix
    return w, x


def test_magnitude_removes_the_smallest_of_the_matrix():
    w, _ = problem()
    pruned = magnitude(w, Pattern(0.5)).numpy()
    flat = np.sort(np.abs(w.numpy()).ravel())
    wanted = np.where(np.abs(w.numpy()) < flat[flat.size // 2], 0, w.numpy())
    np.testing.assert_array_equal(pruned, wanted)


def test_wanda_removes_the_smallest_of_each_row_times_its_inputs_norm():
    w, x = problem()
    pruned = wanda(w, x.double().square().sum(dim=0), Pattern(0.5)).numpy()
    for row, weights in zip(pruned, w.numpy(), strict=True):
        scores = np.abs(weights) * np.linalg.norm(x.numpy(), axis=0)
        gone = np.argsort(scores)[:16]
        wanted = weights.copy()
        wanted[gone] = 0
        np.testing.assert_array_equal(row, wanted)


def sparsegpt_by_columns(w, x, sparsity, block, pair=None):
    """The paper's algorithm 1 in float64 numpy, one column at a time.

    The inverse Hessian is updated by elimination instead of taken from a Cholesky factor.
    """
    w, x = w.double().numpy().copy(), x.double().numpy()
    rows, cols = w.shape
    h = 2 * x.T @ x / len(x)
    h += 0.01 * np.mean(np.diag(h)) * np.eye(cols)
    inverses = []  # of what is left after the columns before each
    remaining = np.linalg.inv(h)
    for _ in range(cols):
        inverses.append(remaining[0].copy())
        first = remaining[0, 0]
        remaining = remaining[1:, 1:] - np.outer(remaining[1:, 0], remaining[0, 1:]) / first
    zero = np.zeros(w.shape, bool)
    diagonal = np.array([inverse[0] for inverse in inverses])
    for j in range(cols):
        if pair is None and j % block == 0:
            part = slice(j, min(j + block, cols))
            scores = w[:, part] ** 2 / diagonal[part]
            count = int(scores.size * sparsity)
            chosen = np.zeros(scores.size, bool)
            chosen[np.argsort(scores.ravel(), kind="stable")[:count]] = True
            zero[:, part] = chosen.reshape(scores.shape)
        if pair is not None and j % pair[1] == 0:
            part = slice(j, j + pair[1])
            scores = w[:, part] ** 2 / diagonal[part]
            for i in range(rows):
                zero[i, j + np.argsort(scores[i])[: pair[0]]] = True
        error = np.where(zero[:, j], w[:, j], 0) / inverses[j][0]
        w[:, j:] -= np.outer(error, inverses[j])
        w[zero[:, j], j] = 0
    return w


@pytest.mark.parametrize("block", [8, 128])
@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_sparsegpt_is_the_papers_algorithm(block, sparsity):
    w, x = problem()
    second = x.double().mT @ x.double() / len(x)
    ours = sparsegpt(w, second, Pattern(sparsity), block=block)
    wanted = sparsegpt_by_columns(w, x, sparsity, block)
    np.testing.assert_array_equal(ours.numpy() == 0, wanted == 0)
    np.testing.assert_allclose(ours, wanted, atol=2e-4)


def test_sparsegpt_by_neighbours_is_the_papers_algorithm():
    w, x = problem()
    second = x.double().mT @ x.double() / len(x)
    ours = sparsegpt(w, second, parse_pattern(None, "2:4"), block=8)
    np.testing.assert_allclose(ours, sparsegpt_by_columns(w, x, 0.5, 8, (2, 4)), atol=2e-4)


def test_knowing_the_inputs_loses_less_on_them():
    w, x = problem()
    x = x * torch.logspace(-1, 1, 32)
    second = x.double().mT @ x.double() / len(x)
    lost = [
        float((x @ (w - pruned).mT).norm())
        for pruned in (
            magnitude(w, Pattern(0.5)),
            wanda(w, second.diagonal(), Pattern(0.5)),
            sparsegpt(w, second, Pattern(0.5)),
        )
    ]
    assert lost == sorted(lost, reverse=True)
    assert lost[2] < 0.9 * lost[1]


@pytest.mark.parametrize("function", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(("pattern", "kept", "of"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)])
def test_patterns_keep_so_many_of_all_neighbours(function, pattern, kept, of):
    w, x = problem()
    second = x.double().mT @ x.double() / len(x)
    asked = parse_pattern(None, pattern)
    pruned = {
        "magnitude": lambda: magnitude(w, asked),
        "wanda": lambda: wanda(w, second.diagonal(), asked),
        "sparsegpt": lambda: sparsegpt(w, second, asked),
    }[function]()
    assert ((pruned.reshape(12, -1, of) != 0).sum(dim=-1) == kept).all()


def test_features_that_are_never_on_are_removed_for_nothing():
    w, x = problem()
    x[:, :8] = 0
    second = x.double().mT @ x.double() / len(x)
    pruned = sparsegpt(w, second, Pattern(0.25))
    assert not pruned[:, :8].any()
    torch.testing.assert_close(x @ pruned.mT, x @ w.mT, atol=1e-3, rtol=1e-3)


def test_what_is_no_pattern_is_refused():
    for sparsity, pattern, message in (
        (None, None, "name a sparsity"),
        (1.0, None, "below 1"),
        (0.3, "2:4", "means a sparsity of 0.5"),
        (None, "4:2", "e.g. 2:4, not 4:2"),
        (None, "x", "e.g. 2:4, not x"),
    ):
        with pytest.raises(InputError, match=message):
            parse_pattern(sparsity, pattern)
    with pytest.raises(InputError, match="groups of 4"):
        least(torch.zeros(2, 6), parse_pattern(None, "2:4"), by_row=True)


@pytest.fixture
def model(tmp_path):
    saved(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_pruned_checkpoint_has_the_zeros_that_were_asked_for(model, tmp_path, method):
    text = None if method == "magnitude" else OWN
    made = prune(str(model), tmp_path / "p", Pattern(0.5), method=method, calibration=text)
    assert made.sparsity == pytest.approx(0.5, abs=0.01)
    before, after = (
        load_file(model / "model.safetensors"),
        load_file(tmp_path / "p/model.safetensors"),
    )
    for name, weight in after.items():
        inside = ".layers." in name and weight.ndim == 2
        share = float((weight == 0).float().mean())
        assert share == pytest.approx(0.5, abs=0.01) if inside else share < 0.1, name
        if not inside:
            assert torch.equal(weight, before[name])
    report = json.loads((tmp_path / "p" / "pruning.json").read_text())
    assert report["method"] == method
    assert len(report["zeros"]) == 14
    AutoModelForCausalLM.from_pretrained(made.path)


def test_blocks_are_pruned_on_what_the_pruned_ones_before_give(model, tmp_path):
    whole = prune(str(model), tmp_path / "p", Pattern(0.5), method="wanda", calibration=OWN)
    pruned = load_file(whole.path / "model.safetensors")
    original = AutoModelForCausalLM.from_pretrained(model)
    names = [n for n in pruned if ".layers.0." in n and n.endswith("_proj.weight")]
    for name in names:
        original.get_parameter(name).data = pruned[name]
    original.save_pretrained(tmp_path / "half")
    # with the first block pruned by hand, the second comes out the same, on the same text
    from spectra.calibration.blocks import open_blocks
    from spectra.calibration.text import own_windows
    from spectra.pruning.pruner import Pruner

    windows = own_windows(Source(str(model)), windows=4, length=16, seed=0)
    second = frozenset(n.removesuffix(".weight") for n in pruned if ".layers.1." in n)
    path = str(tmp_path / "half")
    blocks = open_blocks(Source(path))
    *_, (_, last) = Pruner("wanda", Pattern(0.5), second).blocks(blocks, windows, 4)
    for name, weight in last.items():
        assert torch.equal(weight, pruned[f"{name}.weight"])


@pytest.mark.parametrize("stop", [9, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 3))])
def test_a_pruning_that_is_stopped_anywhere_gives_the_same_files(
    model, tmp_path, monkeypatch, stop
):
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    arguments = {"method": "sparsegpt", "calibration": OWN}
    whole = prune(str(model), tmp_path / "whole", Pattern(0.5), **arguments)
    kept = stopped_at(monkeypatch, Scratch, "save_pruned", stop)
    with pytest.raises(StoppedError):
        prune(str(model), tmp_path / "p", Pattern(0.5), **arguments)
    again = prune(str(model), tmp_path / "p", Pattern(0.5), **arguments)
    one, other = (load_file(r.path / "model.safetensors") for r in (again, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    made = [name for name, _ in kept]
    assert len(made) - len(set(made)) == stop % 7  # the block that was under way, again
    assert not list((tmp_path / "cache/calibration").glob("*/*"))


@pytest.mark.parametrize("storage", STORAGES)
def test_of_a_compressed_checkpoint_the_dense_matrices_are_pruned(model, tmp_path, storage):
    scan = spectra.scan(str(model), tmp_path / "scan.zarr")
    rank_map = spectra.allocate(scan, err=0.55)
    made = compress(str(model), rank_map, tmp_path / "c", storage=storage)
    factored = {m.name for m in made.rank_map.modules if m.factored}
    assert 0 < len(factored) < 14
    result = prune(
        str(made.path),
        tmp_path / "p",
        Pattern(0.5),
        method="sparsegpt",
        only="nlrc",
        calibration=OWN,
    )
    assert set(result.matrices) == {m.name for m in made.rank_map.nlrc}
    before, after = (
        load_file(made.path / "model.safetensors"),
        load_file(result.path / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    for name in before:
        changed = name.removesuffix(".weight") in result.matrices
        assert torch.equal(before[name], after[name]) != changed
    loaded = AutoModelForCausalLM.from_pretrained(result.path)  # hashes are those of what is there
    assert loaded(input_ids=random_batch(1)).logits.isfinite().all()


def test_a_map_tells_n_lrcs_of_a_dense_checkpoint(model, tmp_path, capsys):
    scan = spectra.scan(str(model), tmp_path / "scan.zarr")
    rank_map = spectra.allocate(scan, err=0.55)
    rank_map.save(tmp_path / "map.json")
    arguments = [
        "prune",
        str(model),
        "--method",
        "magnitude",
        "--sparsity",
        "0.5",
        "--only",
        "nlrc",
    ]
    assert main([*arguments, "--out", str(tmp_path / "p")]) == 2
    assert "name it with --map" in capsys.readouterr().err
    arguments += ["--map", str(tmp_path / "map.json"), "--json"]
    assert main([*arguments, "--out", str(tmp_path / "p")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pruned"] == len(rank_map.nlrc)
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("power", [-110, 100])
@pytest.mark.parametrize("pattern", [Pattern(0.5), Pattern(0.5, 2, 4)])
def test_pruning_does_not_depend_on_scale(power, pattern):
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 32, generator=draw), torch.randn(200, 32, generator=draw)
    second = (x.mT @ x / 200).double()
    for method in (lambda w, _: magnitude(w, pattern), lambda w, s: wanda(w, s.diagonal(), pattern),
                  lambda w, s: sparsegpt(w, s, pattern)):  # fmt: skip
        found = method(weight * 2.0**power, second * 2.0**power)
        torch.testing.assert_close(found, method(weight, second) * 2.0**power, rtol=1e-4, atol=0)


def test_a_weight_that_is_not_finite_stops_with_its_name(model, tmp_path):
    def spoilt(tensors):
        tensors[f"{Q}.weight"][0, 0] = torch.inf

    rewritten(model, spoilt)
    with pytest.raises(InputError, match=Q):
        prune(str(model), tmp_path / "p", Pattern(0.5), method="magnitude")
    assert not (tmp_path / "p" / "config.json").exists()


def test_calibration_of_a_method_without_data_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="magnitude is data-free"):
        prune(str(model), tmp_path / "p", Pattern(0.5), method="magnitude", calibration=OWN)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_layer_that_calibration_never_reaches_is_left_with_its_reason(
    model, tmp_path, monkeypatch, method
):
    def reads_the_weight_itself(mlp, x):
        gate = torch.nn.functional.linear(x, mlp.gate_proj.weight)
        return mlp.down_proj(mlp.act_fn(gate) * mlp.up_proj(x))

    monkeypatch.setattr(LlamaMLP, "forward", reads_the_weight_itself)
    before = load_file(model / "model.safetensors")
    result = prune(str(model), tmp_path / "p", Pattern(0.5), method=method, calibration=OWN)
    unreached = [f"model.layers.{i}.mlp.gate_proj" for i in range(2)]
    assert {n for n, why in result.left.items() if why == UNREACHED} == set(unreached)
    assert result.matrices
    assert not result.matrices.keys() & result.left.keys()
    after = load_file(tmp_path / "p/model.safetensors")
    for name in unreached:
        assert torch.equal(after[f"{name}.weight"], before[f"{name}.weight"])


def test_a_layer_that_is_called_by_its_argument_name_is_calibrated():
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.inner(input=x)

    statistics, layer = BlockStatistics(), Named()
    x = torch.randn(5, 4)
    with watching({"inner": layer.inner}, statistics, {"inner": {INPUTS}}):
        layer(x)
    torch.testing.assert_close(statistics.of("inner").covariance.float(), x.mT @ x / 5)

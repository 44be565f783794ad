"""Statistics block by block equal those of the whole model, on any family."""

import contextlib
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from spectra.calibration import passes, text
from spectra.calibration.blocks import Blocks, open_blocks
from spectra.calibration.draws import drawn
from spectra.calibration.hidden import HiddenStates
from spectra.calibration.options import Calibration
from spectra.calibration.passes import Pass
from spectra.calibration.statistics import (
    CARRIED,
    GRADIENTS,
    INPUTS,
    MAGNITUDES,
    OUTPUTS,
    Moments,
    add_products,
    whole_of,
)
from spectra.calibration.text import own_windows
from spectra.checkpoint.notes import CheckpointNote
from spectra.compression import calibrated
from spectra.compression.calibrated import calibration_text
from spectra.machine.progress import silent
from spectra.models import placement
from spectra.models.loading import Loaded, load_whole
from spectra.models.parts import take_apart
from spectra.models.places import places_of
from spectra.models.source import Source
from spectra_data.errors import InputError
from tests.small import random_batch
from tests.spectra.checkpoints import saved
from tests.spectra.interruption import StoppedError, stopped_at

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gpt_neox", "opt", "gpt2", "phi3", "mixtral"]
WINDOWS = random_batch(0)
EVERYTHING = (INPUTS, OUTPUTS, GRADIENTS, CARRIED, MAGNITUDES)


def a_pass(source, folder, *, wanted=EVERYTHING, done=(), **options):
    """A pass of random windows through a checkpoint's blocks, which keeps states in a folder."""
    folder.mkdir(exist_ok=True)
    blocks = source if isinstance(source, Blocks) else open_blocks(Source(str(source)))
    settings = {"batch_size": 2, "seed": 0, "progress": silent} | options
    states = HiddenStates(folder)
    return Pass(blocks, WINDOWS, lambda _: wanted, states, lambda name: name in done, **settings)


def same(one, other):
    """Whether two moments are the same bit for bit."""
    return torch.equal(one.covariance, other.covariance) and one.count == other.count


def apart(folder, family):
    """A saved model, in which every matrix has a linear layer of its own."""
    model = saved(folder, family).eval()
    take_apart(model, places_of(Source(str(folder))).parts)
    return model


def whole_inputs(model, windows):
    """What goes into every linear layer of the blocks, from an ordinary forward pass."""
    seen, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def keep(_, inputs, name=name):
                seen[name] = inputs[0].detach()

            handles.append(module.register_forward_pre_hook(keep))
    with torch.no_grad():
        model(input_ids=windows)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_statistics_are_those_of_the_whole_model(tmp_path, family):
    model = apart(tmp_path / "m", family)
    seen = whole_inputs(model, WINDOWS)
    found = list(a_pass(tmp_path / "m", tmp_path / "s").forwards())
    assert [one.index for one in found] == [0, 1]
    for one in found:
        for layer in one.statistics.groups:
            moments = one.statistics.of(layer)
            module = model.get_submodule(f"{one.name}.{layer}")
            x = seen[f"{one.name}.{layer}"].reshape(-1, module.in_features)
            near(moments.covariance, x.mT @ x / len(x))
            near(moments.magnitude, x.abs().mean(dim=0))
            near(moments.variances, x.square().mean(dim=0))
            y = x @ module.weight.detach().mT
            near(one.statistics.outputs[layer].covariance, y.mT @ y / len(y))


def near(found, wanted):
    wanted = wanted.double()
    scale = float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * scale)


def test_layers_that_read_the_same_input_share_their_moments(tmp_path):
    saved(tmp_path / "m")
    groups = next(a_pass(tmp_path / "m", tmp_path / "s").forwards()).statistics.groups
    q, k, v, o = (groups[f"self_attn.{role}_proj"] for role in "qkvo")
    gate, up, down = (groups[f"mlp.{role}_proj"] for role in ("gate", "up", "down"))
    assert q == k == v
    assert gate == up
    assert len({q, o, gate, down}) == 4


def test_only_the_second_moments_that_are_wanted_are_taken(tmp_path):
    saved(tmp_path / "m")
    run = a_pass(tmp_path / "m", tmp_path / "s")
    wanted = {"q_proj": (OUTPUTS,), "v_proj": (INPUTS,)}  # which read the same input
    names = {id(m): n.rpartition(".")[2] for n, m in run.blocks.model.named_modules()}
    run = dataclasses.replace(run, wanted=lambda layer: wanted.get(names[id(layer)], ()))
    first = next(run.forwards()).statistics
    full = next(a_pass(tmp_path / "m", tmp_path / "t").forwards()).statistics
    assert list(first.outputs) == ["self_attn.q_proj"]
    assert same(first.of("self_attn.k_proj"), full.of("self_attn.k_proj"))
    assert first.of("mlp.down_proj").lower is None
    near(first.of("mlp.down_proj").variances, full.of("mlp.down_proj").variances)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_gradients_block_by_block_are_those_of_the_whole_model(tmp_path, family, monkeypatch):
    model = apart(tmp_path / "m", family)
    # the tokens that it draws, to ask an ordinary backward pass about the same ones
    drawn = []
    draw = passes.drawn
    monkeypatch.setattr(passes, "drawn", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    found = {one.index: one for one in a_pass(tmp_path / "m", tmp_path / "s").backwards()}
    assert len(found) == 2
    outputs = {}
    names = [one.name for one in found.values()]
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and any(name.startswith(n) for n in names):

            def keep(_, __, out, name=name):
                out.retain_grad()
                outputs[name] = out

            module.register_forward_hook(keep)
    logits = model(input_ids=WINDOWS).logits
    F.cross_entropy(logits.flatten(0, 1), torch.cat(drawn), reduction="sum").backward()
    compared = 0
    for one in found.values():
        for layer, moments in one.statistics.gradients.items():
            module = model.get_submodule(f"{one.name}.{layer}")
            g = outputs[f"{one.name}.{layer}"].grad.reshape(-1, module.out_features)
            near(moments.covariance, g.mT @ g / len(g))
            back = g @ module.weight.detach()
            near(one.statistics.carried[layer].covariance, back.mT @ back / len(back))
            compared += 1
    assert compared >= 12
    assert list((tmp_path / "s").iterdir()) == []


def test_tokens_are_drawn_by_their_probabilities():
    probabilities = torch.tensor([[0.0, 0.3, 0.7, 0.0], [1.0, 0.0, 0.0, 0.0]]).repeat(4000, 1)
    draw = torch.Generator().manual_seed(0)
    uniform = torch.rand(8000, generator=draw, dtype=torch.float64)
    found = drawn(probabilities, uniform).reshape(-1, 2)
    assert set(found[:, 0].tolist()) == {1, 2}
    assert float((found[:, 0] == 2).float().mean()) == pytest.approx(0.7, abs=0.03)
    assert not found[:, 1].any()
    ends = drawn(probabilities[:2], torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64))
    assert ends.tolist() == [1, 0]
    with pytest.raises(InputError, match="predictions are not finite"):
        drawn(torch.full((1, 2), torch.nan), uniform[:1])


def test_a_streamed_model_holds_no_block_before_and_after_it_runs(tmp_path):
    saved(tmp_path / "m")
    blocks = open_blocks(Source(str(tmp_path / "m")))

    def held():
        inside = (p for n, p in blocks.model.named_parameters() if ".layers." in n)
        return sum(not weight.is_meta for weight in inside)

    assert held() == 0
    for seen in a_pass(blocks, tmp_path / "s").forwards():
        assert held() == len(list(seen.block.parameters()))
    assert held() == 0


def test_a_streamed_model_predicts_what_the_whole_one_predicts(tmp_path):
    model = saved(tmp_path / "m", tie_word_embeddings=True).eval()
    blocks = open_blocks(Source(str(tmp_path / "m")))
    (passage,) = blocks.start(WINDOWS)
    with torch.no_grad():
        for i in range(len(blocks)):
            with blocks.block(i) as block:
                passage.hidden = blocks.run(i, block, passage)
        torch.testing.assert_close(
            blocks.logits(passage.hidden, passage), model(input_ids=WINDOWS).logits
        )


@pytest.mark.parametrize(
    ("backward", "stop"),
    [
        (False, 1),
        *((True, n) for n in (1, 4, 6)),
        pytest.param(False, 0, marks=pytest.mark.slow),
        *(pytest.param(True, n, marks=pytest.mark.slow) for n in (0, 2, 3, 5, 7)),
    ],
)
def test_a_pass_that_is_stopped_anywhere_resumes_with_the_same_statistics(
    tmp_path, monkeypatch, backward, stop
):
    """Stop before one of the states that it keeps is there, then go on with what is on disk."""
    saved(tmp_path / "m", num_hidden_layers=3)

    def collected(folder, found):
        run = a_pass(tmp_path / "m", folder, done=found)
        for seen in run.backwards() if backward else run.forwards():
            assert seen.name not in found
            found[seen.name] = seen.statistics
        return found

    whole = collected(tmp_path / "whole", {})
    assert len(whole) == 3
    found = {}
    stopped_at(monkeypatch, HiddenStates, "keep", stop)
    with contextlib.suppress(StoppedError):
        collected(tmp_path / "s", found)
    ran = []
    real_run = Blocks.run
    monkeypatch.setattr(Blocks, "run", lambda *a: ran.append(a[1]) or real_run(*a))
    collected(tmp_path / "s", found)
    assert found.keys() == whole.keys()
    for name, statistics in whole.items():
        for kind in ("inputs", "outputs", "gradients", "carried"):
            before, after = getattr(statistics, kind), getattr(found[name], kind)
            assert before.keys() == after.keys()
            assert all(same(before[key], after[key]) for key in before)
    # of the blocks that went forwards, those whose outputs were on disk do not run again
    assert set(ran) == set(range(max(stop - 1, 0) if backward else stop, 3))
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize("backward", [False, True])
def test_a_pass_resumes_with_other_batches(tmp_path, monkeypatch, backward):
    """States are those of windows: in what batches they were written does not matter."""
    saved(tmp_path / "m", num_hidden_layers=3)

    def collected(found, **options):
        run = a_pass(tmp_path / "m", tmp_path / "s", done=found, **options)
        for seen in run.backwards() if backward else run.forwards():
            found[seen.name] = seen.statistics
        return found

    whole = collected({})
    assert len(WINDOWS) == 4
    found = {}
    stopped_at(monkeypatch, HiddenStates, "keep", 5 if backward else 1)
    with pytest.raises(StoppedError):
        collected(found)
    collected(found, batch_size=3)
    for name, statistics in whole.items():
        for group, moments in statistics.inputs.items():
            assert found[name].inputs[group].count == moments.count
            near(found[name].inputs[group].covariance, moments.covariance)
        for layer, moments in statistics.gradients.items():
            near(found[name].gradients[layer].covariance, moments.covariance)


def test_states_that_a_power_cut_left_short_are_not_used(tmp_path):
    states = HiddenStates(tmp_path)
    states.keep("hidden", 1, [torch.ones(2, 3, 4)])
    path = tmp_path / "hidden-1.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert not states.has("hidden", 1)
    assert not states.has("hidden", 2)


def test_a_full_disk_is_one_line(tmp_path):
    states = HiddenStates(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot write .*hidden-0"):
        states.keep("hidden", 0, [torch.ones(2, 3, 4)])


def test_moments_are_summed_in_float64():
    moments = Moments.empty(torch.zeros(2))
    moments.add(torch.tensor([[1e4, 1.0]]))
    for _ in range(1000):
        moments.add(torch.tensor([[0.0, 1e-3]]))
    assert moments.count == 1001
    assert float(moments.covariance[1, 1]) == pytest.approx(1.001 / 1001, rel=1e-6)


@pytest.mark.parametrize("features", [1, 7, 300, 900])
def test_products_are_summed_by_tiles(features):
    rows = torch.randn(40, features, generator=torch.Generator().manual_seed(0))
    lower = torch.zeros(features, features, dtype=torch.float64)
    add_products(lower, rows)
    add_products(lower, 2 * rows)
    wanted = 5 * (rows.double().mT @ rows.double())
    torch.testing.assert_close(whole_of(lower), wanted, rtol=1e-5, atol=1e-4)


def flip(content: bytes) -> bytes:
    return bytes([*content[:-1], content[-1] ^ 1])


def test_text_that_was_damaged_is_written_again(tmp_path, monkeypatch, capsys):
    saved(tmp_path / "m")
    monkeypatch.setenv("SPECTRA_CACHE", str(tmp_path / "cache"))
    calibration = Calibration(windows=2, length=8)
    written, _ = calibration_text(Source(str(tmp_path / "m")), calibration, "cpu")
    (file,) = (tmp_path / "cache/calibration").glob("text-*")
    content = file.read_bytes()
    file.write_bytes(flip(content))
    again, _ = calibration_text(Source(str(tmp_path / "m")), calibration, "cpu")
    assert torch.equal(again, written)
    assert f"{file} is damaged" in capsys.readouterr().err
    assert file.read_bytes() == content


def test_a_model_writes_the_same_text_again_and_leaves_the_random_state_alone(tmp_path):
    saved(tmp_path / "m")
    state = torch.get_rng_state()
    one = own_windows(Source(str(tmp_path / "m")), windows=3, length=12, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.shape == (3, 12)
    assert torch.equal(one, own_windows(Source(str(tmp_path / "m")), windows=3, length=12, seed=1))
    assert not torch.equal(
        one, own_windows(Source(str(tmp_path / "m")), windows=3, length=12, seed=2)
    )
    assert (one[:, 0] == 0).all()  # its beginning token


def test_a_model_whose_blocks_are_read_one_by_one_writes_the_same_text(tmp_path, monkeypatch):
    saved(tmp_path / "m")
    source = Source(str(tmp_path / "m"))
    size = {"windows": 5, "length": 12, "seed": 1}
    whole = own_windows(source, **size)
    monkeypatch.setattr(placement, "free_memory", lambda device: 1)
    with pytest.warns(CheckpointNote, match="its blocks are read one at a time"):
        assert torch.equal(own_windows(source, **size), whole)
    monkeypatch.setattr(text, "CACHE_BYTES", 2 * 12 * text._cached_bytes(source.config))
    stages = []
    with pytest.warns(CheckpointNote):
        written = own_windows(source, **size, progress=lambda *stage: stages.append(stage))
    assert torch.equal(written, whole)
    assert stages[-1] == ("own text", 3 * 11, 3 * 11)  # two windows at a time


def test_keys_and_values_take_what_is_predicted(tmp_path):
    model = saved(tmp_path / "m")
    cache = model(input_ids=WINDOWS[:1], use_cache=True).past_key_values
    held = sum(t.numel() * 4 for layer in cache.layers for t in (layer.keys, layer.values))
    assert held == WINDOWS.shape[1] * text._cached_bytes(model.config)


def test_a_model_that_would_write_for_too_long_is_calibrated_on_other_text(
    shared, tmp_path, monkeypatch
):
    saved(tmp_path / "m", vocab_size=512)
    assert calibrated.INSTEAD == "pydocs"
    monkeypatch.setattr(calibrated, "INSTEAD", str(tmp_path / "short.txt"))  # as it takes seconds
    (tmp_path / "short.txt").write_text("Once upon a time there was a small text. " * 20)
    tokenizer = str(shared / "data/checkpoints/stories260K")
    calibration = Calibration(windows=2, length=16, own_text_hours=0, tokenizer=tokenizer)
    with pytest.warns(CheckpointNote, match=r"would write its own text for 0\.0 hours, longer"):
        _, about = calibration_text(Source(str(tmp_path / "m")), calibration, "cpu")
    assert about["data"].endswith("short.txt")
    assert "own_text_hours" not in calibration.described()


def test_what_transformers_cannot_load_is_one_line(tmp_path):
    saved(tmp_path / "m")
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(InputError, match="cannot load"):
        load_whole(str(tmp_path / "m"))
    with pytest.raises(InputError, match="no list of blocks"):
        Blocks(Loaded(torch.nn.Linear(2, 2)))

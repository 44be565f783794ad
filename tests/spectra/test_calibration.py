"""Statistics block by block equal those of the whole model, on any family."""

import pytest
import torch
import torch.nn.functional as F

from spectra.calibration.blocks import Blocks, open_blocks
from spectra.calibration.options import Calibration
from spectra.calibration.passes import backward_pass, forward_pass
from spectra.calibration.statistics import BlockStatistics, Moments
from spectra.calibration.store import StatisticsFolder
from spectra.calibration.text import own_windows
from spectra.compression.calibrated import calibration_text
from spectra.models.loading import Loaded, load_skeleton, load_whole
from spectra.models.source import Source
from spectra_data.errors import InputError
from tests.small import random_batch
from tests.spectra.checkpoints import saved

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gpt_neox", "opt", "gpt2", "phi3", "mixtral"]
WINDOWS = random_batch(0)


def silent(stage, done, count):
    """No progress."""


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
    model = saved(tmp_path / "m", family).eval()
    blocks = open_blocks(Source(str(tmp_path / "m")))
    seen = whole_inputs(model, WINDOWS)
    found = list(forward_pass(blocks, WINDOWS, batch_size=2, progress=silent))
    assert [one.index for one in found] == [0, 1]
    for one in found:
        for layer in one.statistics.groups:
            x = seen[f"{one.name}.{layer}"].reshape(-1, one.statistics.of(layer).second.shape[0])
            wanted = (x.mT @ x / len(x)).double()
            scale = float(wanted.abs().max())
            torch.testing.assert_close(
                one.statistics.of(layer).covariance, wanted, rtol=1e-4, atol=1e-5 * scale
            )
            magnitude = x.abs().mean(dim=0).double()
            torch.testing.assert_close(
                one.statistics.of(layer).magnitude, magnitude, rtol=1e-3, atol=1e-6
            )


def test_layers_that_read_the_same_input_share_their_moments(tmp_path):
    saved(tmp_path / "m")
    blocks = open_blocks(Source(str(tmp_path / "m")))
    groups = next(iter(forward_pass(blocks, WINDOWS, progress=silent))).statistics.groups
    q, k, v, o = (groups[f"self_attn.{role}_proj"] for role in "qkvo")
    gate, up, down = (groups[f"mlp.{role}_proj"] for role in ("gate", "up", "down"))
    assert q == k == v
    assert gate == up
    assert len({q, o, gate, down}) == 4


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_gradients_block_by_block_are_those_of_the_whole_model(tmp_path, family, monkeypatch):
    model = saved(tmp_path / "m", family).eval()
    blocks = open_blocks(Source(str(tmp_path / "m")))
    # the tokens that it draws, to ask an ordinary backward pass about the same ones
    drawn = []
    multinomial = torch.multinomial

    def noted(*args, **kwargs):
        drawn.append(multinomial(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(torch, "multinomial", noted)
    found = {
        one.index: one for one in backward_pass(blocks, WINDOWS, batch_size=2, progress=silent)
    }
    outputs = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and any(name.startswith(n) for n in blocks.names):

            def keep(_, __, out, name=name):
                out.retain_grad()
                outputs[name] = out

            module.register_forward_hook(keep)
    logits = model(input_ids=WINDOWS).logits
    F.cross_entropy(logits.flatten(0, 1), torch.cat(drawn)[:, 0], reduction="sum").backward()
    compared = 0
    for one in found.values():
        for layer, moments in one.statistics.gradients.items():
            g = outputs[f"{one.name}.{layer}"].grad.reshape(-1, moments.second.shape[0])
            wanted = (g.mT @ g / len(g)).double()
            scale = float(wanted.abs().max())
            torch.testing.assert_close(moments.covariance, wanted, rtol=1e-3, atol=1e-4 * scale)
            compared += 1
    assert compared or family == "gpt2"  # whose layers are no linear ones


def test_a_streamed_model_holds_no_block_before_and_after_it_runs(tmp_path):
    saved(tmp_path / "m")
    blocks = open_blocks(Source(str(tmp_path / "m")))
    weights = [p for n, p in blocks.model.named_parameters() if ".layers." in n]
    assert weights
    assert all(weight.is_meta for weight in weights)
    for _ in forward_pass(blocks, WINDOWS, progress=silent):
        inside = [p for n, p in blocks.model.named_parameters() if ".layers." in n]
        assert all(weight.is_meta for weight in inside)


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


def test_a_checkpoint_whose_tensors_have_other_names_is_loaded_whole(tmp_path):
    saved(tmp_path / "m", "mixtral")  # experts lie one by one on disk, stacked in memory
    assert load_skeleton(Source(str(tmp_path / "m"))) is None
    assert len(open_blocks(Source(str(tmp_path / "m")))) == 2


def test_hidden_states_that_are_too_many_for_memory_go_to_disk(tmp_path, monkeypatch):
    from spectra.calibration import passes

    saved(tmp_path / "m")
    path = str(tmp_path / "m")
    inside = list(backward_pass(open_blocks(Source(path)), WINDOWS, progress=silent))
    monkeypatch.setattr(passes, "IN_MEMORY", 0)
    outside = list(backward_pass(open_blocks(Source(path)), WINDOWS, progress=silent))
    for one, other in zip(inside, outside, strict=True):
        for layer, moments in one.statistics.gradients.items():
            assert torch.equal(moments.second, other.statistics.gradients[layer].second)


def test_moments_are_summed_in_float64():
    moments = Moments.empty(2)
    moments.add(torch.tensor([[1e4, 1.0]]))
    for _ in range(1000):
        moments.add(torch.tensor([[0.0, 1e-3]]))
    assert moments.count == 1001
    assert float(moments.second[1, 1]) == pytest.approx(1.001, rel=1e-6)


def test_kept_statistics_are_read_back_bit_for_bit_and_known_by_what_they_come_from(tmp_path):
    statistics = BlockStatistics({"a": 0, "b": 0}, {0: Moments.empty(3)}, {"a": Moments.empty(2)})
    statistics.inputs[0].add(torch.randn(5, 3))
    statistics.gradients["a"].add(torch.randn(5, 2))
    folder = StatisticsFolder({"checkpoint": "c", "tokens": "t"})
    folder.save("model.layers.0", statistics)
    read = folder.load("model.layers.0")
    assert read.groups == statistics.groups
    assert torch.equal(read.inputs[0].second, statistics.inputs[0].second)
    assert torch.equal(read.gradients["a"].absolute, statistics.gradients["a"].absolute)
    assert read.gradients["a"].count == 5
    for other in ({"checkpoint": "c", "tokens": "u"}, {"checkpoint": "d", "tokens": "t"}):
        assert not StatisticsFolder(other).intact("model.layers.0")


def flip(content: bytes) -> bytes:
    return bytes([*content[:-1], content[-1] ^ 1])


@pytest.mark.parametrize("damage", [flip, lambda content: content[:-9], lambda content: b""])
def test_damaged_statistics_are_removed_with_a_line(capsys, damage):
    statistics = BlockStatistics({"a": 0}, {0: Moments.empty(3)})
    statistics.inputs[0].add(torch.randn(5, 3))
    folder = StatisticsFolder({"checkpoint": "c", "damage": repr(damage)})
    folder.save("model.layers.0", statistics)
    assert folder.intact("model.layers.0")
    file = folder.path / "model.layers.0.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert not folder.intact("model.layers.0")
    assert f"{file} is damaged" in capsys.readouterr().err
    assert not file.exists()


def test_statistics_of_another_block_are_not_used(tmp_path):
    statistics = BlockStatistics({"a": 0}, {0: Moments.empty(3)})
    folder = StatisticsFolder({"checkpoint": "c", "renamed": True})
    folder.save("model.layers.0", statistics)
    file = folder.path / "model.layers.0.safetensors"
    file.rename(folder.path / "model.layers.1.safetensors")
    assert not folder.intact("model.layers.1")
    with pytest.raises(InputError, match="was lost: repeat the command"):
        folder.load("model.layers.1")


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


def test_what_transformers_cannot_load_is_one_line(tmp_path):
    saved(tmp_path / "m")
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(InputError, match="cannot load"):
        load_whole(str(tmp_path / "m"))
    with pytest.raises(InputError, match="no list of blocks"):
        Blocks(Loaded(torch.nn.Linear(2, 2)))

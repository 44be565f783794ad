"""A model whose blocks are read when they run: the same numbers as one in memory, in less of it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import spectra
from spectra.checkpoint.notes import CheckpointNote
from spectra.cli import main
from spectra.compression.compress import compress
from spectra.evaluation.models import load_model
from spectra.models import placement
from spectra.models.streamed import is_streamed
from spectra.pruning.prune import prune
from spectra.pruning.sparsity import Pattern
from spectra_data.errors import InputError
from tests.small import random_batch
from tests.spectra.checkpoints import edit_config, saved

FAMILIES = ["llama", "qwen3", "gpt_neox", "opt", "gpt2", "phi3", "mixtral"]


@pytest.fixture(scope="module")
def checkpoints(shared, tmp_path_factory):
    """A real model: as it is, compressed in both storages, and pruned."""
    folder = tmp_path_factory.mktemp("kinds")
    dense = str(shared / "data" / "checkpoints" / "stories260K")
    rank_map = spectra.allocate(spectra.scan(dense, folder / "scan.zarr"), err=0.5)
    found = {"dense": dense}
    for storage in ("factors", "pivoted"):
        compress(dense, rank_map, folder / storage, storage=storage)
        found[storage] = str(folder / storage)
    prune(dense, folder / "pruned", Pattern(0.5), method="magnitude")
    return found | {"pruned": str(folder / "pruned")}


def held(model):
    """Bytes of parameters in memory."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_meta)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_predicts_the_same(tmp_path, family):
    saved(tmp_path / "m", family)
    whole = load_model(str(tmp_path / "m"))
    model = load_model(str(tmp_path / "m"), loading="blocks")
    assert is_streamed(model)
    assert not is_streamed(whole)
    before = held(model)
    assert before < held(whole)
    with torch.no_grad():
        for batch in (random_batch(0), random_batch(1)):
            expected = whole(input_ids=batch).logits
            torch.testing.assert_close(model(input_ids=batch).logits, expected, rtol=0, atol=0)
    assert held(model) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["dense", "factors", "pivoted", "pruned"])
def test_every_kind_of_checkpoint_predicts_the_same_in_any_precision(checkpoints, kind, dtype):
    whole = load_model(checkpoints[kind], dtype)
    model = load_model(checkpoints[kind], dtype, loading="blocks")
    ids = torch.arange(3, 67).reshape(2, 32)
    with torch.no_grad():
        one, other = whole(input_ids=ids).logits, model(input_ids=ids).logits
    assert one.dtype == other.dtype
    torch.testing.assert_close(other, one, rtol=0, atol=0)


def test_text_is_continued_with_a_cache(checkpoints):
    ids = torch.tensor([[1, 20, 30, 40]])
    one, other = (
        load_model(checkpoints["factors"], loading=how).generate(
            input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        for how in ("whole", "blocks")
    )
    assert torch.equal(one, other)


def test_a_block_that_fails_is_freed(tmp_path, monkeypatch):
    saved(tmp_path / "m")
    model = load_model(str(tmp_path / "m"), loading="blocks")
    before = held(model)
    monkeypatch.setattr(
        type(model.model.layers[0].mlp), "forward", lambda self, x: (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(OSError), torch.no_grad():  # noqa: PT011
        model(input_ids=random_batch(0))
    assert held(model) == before


@pytest.mark.parametrize(
    "measured",
    [
        ["--data", "{text}", "--windows", "3", "--seq-len", "32"],
        ["--data", "{text}", "--windows", "3", "--seq-len", "32", "--protocol", "reference"],
        ["--data", "{text}", "--windows", "3", "--seq-len", "32", "--stride", "8"],
        ["--task", "boolq", "--task-data", "{tasks}", "--windows", "6"],
    ],
    ids=["plain", "reference", "stride", "task"],
)
def test_evaluate_prints_the_same_numbers(checkpoints, shared, capsys, measured):
    places = {
        "text": shared / "data/text/wikitext2-valid.txt",
        "tasks": shared / "data/tasks",
    }
    arguments = [word.format(**places) for word in measured]
    found = []
    for how in ("whole", "blocks"):
        assert (
            main(["evaluate", checkpoints["pivoted"], *arguments, "--loading", how, "--json"]) == 0
        )
        found.append(json.loads(capsys.readouterr().out))
    for numbers in found:
        for name in ("peak_memory_bytes", "seconds", "tokens_per_second"):
            numbers.pop(name, None)
    assert found[0].pop("nll", 0) == pytest.approx(found[1].pop("nll", 0), rel=1e-6)
    assert found[0].pop("perplexity", 0) == pytest.approx(found[1].pop("perplexity", 0), rel=1e-6)
    assert found[0] == found[1]


def test_memory_decides_and_says_so(checkpoints, monkeypatch):
    size = held(AutoModelForCausalLM.from_pretrained(checkpoints["dense"]))
    monkeypatch.setattr(placement, "free_memory", lambda device: 2 * size)
    assert not is_streamed(load_model(checkpoints["dense"], loading="auto"))
    monkeypatch.setattr(placement, "free_memory", lambda device: size)
    with pytest.warns(CheckpointNote, match=r"takes 1\.\d MB in float32, and 1\.\d MB are free"):
        assert is_streamed(load_model(checkpoints["dense"], loading="auto"))
    monkeypatch.setattr(placement, "free_memory", lambda device: int(1.2 * size))
    # a compressed checkpoint takes what its factors take
    assert not is_streamed(load_model(checkpoints["factors"], loading="auto"))


def test_what_can_only_be_loaded_whole_is_one_line(tmp_path):
    saved(tmp_path / "m")
    edit_config(tmp_path / "m", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(InputError, match="can only be loaded whole"):
        load_model(str(tmp_path / "m"), loading="blocks")

"""A GGUF model read tensor by tensor: what transformers makes of it, from one file or several."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import spectra
from spectra.calibration.blocks import open_blocks
from spectra.compression.compress import compress
from spectra.evaluation.models import load_model
from spectra.models import loading
from spectra.models.gguf_tensors import gguf_tensors
from spectra.models.loading import load_whole
from spectra.models.source import Source
from spectra.models.streamed import is_streamed
from spectra.pruning.prune import prune
from spectra.pruning.sparsity import Pattern
from spectra_data.errors import InputError
from tests.gguf_llama import write_gguf
from tests.small import random_batch, small_llama


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request):
    return small_llama(num_key_value_heads=2, tie_word_embeddings=request.param).eval()


@pytest.fixture(params=[1, 3], ids="{}-files".format)
def files(request, model, tmp_path):
    return write_gguf(tmp_path / "g", model, request.param)


def test_its_tensors_are_the_models(model, files):
    found = gguf_tensors(Source(str(files[0])))
    parameters = dict(model.named_parameters())
    assert found.tensors.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert torch.equal(found.read(name), parameter.detach())
        assert found.rounded(torch.bfloat16).read(name).dtype == torch.bfloat16


def test_they_are_what_transformers_makes(model, tmp_path):
    (file,) = write_gguf(tmp_path / "g", model)
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    found = gguf_tensors(Source(str(file)))
    for name, parameter in theirs.named_parameters():
        assert torch.equal(found.read(name), parameter.detach().float())


@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_it_predicts_what_the_model_predicts(model, files, how):
    loaded = load_model(str(files[0].parent), loading=how)
    assert is_streamed(loaded) == (how == "blocks")
    batch = random_batch(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=batch).logits, model(input_ids=batch).logits)


def test_it_is_compressed_and_pruned_without_ever_being_whole(tmp_path, monkeypatch):
    source = str(write_gguf(tmp_path / "g", small_llama(num_key_value_heads=2), 3)[0])
    rank_map = spectra.allocate(
        spectra.scan(source, tmp_path / "scan.zarr"), method="uniform", err=0.6
    )
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_whole", lambda *a: pytest.fail("it was loaded whole"))
        made = compress(source, rank_map, tmp_path / "c")
        pruned = prune(source, tmp_path / "p", Pattern(0.5), method="magnitude")
        found = list(open_blocks(Source(source)).names)
    assert found == ["model.layers.0", "model.layers.1"]
    for folder in (made.path, pruned.path):
        model = load_whole(str(folder)).model
        with torch.no_grad():
            assert model(input_ids=random_batch(0)).logits.isfinite().all()


def test_a_tensor_of_another_shape_is_named(model, files):
    tensors = gguf_tensors(Source(str(files[0])))
    tensors._shapes = dict(tensors._shapes) | {"model.norm.weight": (7,)}
    with pytest.raises(InputError, match=r"output_norm.weight is .*, but the model's model.norm"):
        tensors.read("model.norm.weight")

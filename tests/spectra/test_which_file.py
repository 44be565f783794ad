"""Which file is meant: one answer for every command, the one that transformers gives."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import spectra
from spectra.checkpoint.address import addresses
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.checkpoint.notes import CheckpointNote
from spectra.evaluation.resources import bytes_on_disk
from spectra.models.loading import load_whole
from spectra.models.source import Source
from spectra_data.errors import InputError
from tests.small import random_batch, small_llama

Q = "model.layers.0.self_attn.q_proj"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 99999\n"


def scaled(by):
    model = small_llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(by)
    return model


def read(place):
    """What a scan reads, and what a model holds, of q in the first block."""
    opened = open_checkpoint(str(place))
    stored = opened.read(next(m for m in opened.matrices if m.name == Q))
    model = load_whole(str(place)).model
    assert torch.equal(model.get_submodule(Q).weight, stored)
    return stored


def of(by):
    return small_llama().get_submodule(Q).weight * by


@pytest.fixture
def folder(tmp_path):
    small_llama().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_a_file_that_is_named_is_the_one_that_is_used(folder):
    tensors = {k: 3 * v for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "ema.safetensors")
    torch.save({"state_dict": tensors}, folder / "ema.pt")
    assert torch.equal(read(folder), of(1))
    assert torch.equal(read(folder / "model.safetensors"), of(1))
    assert torch.equal(read(folder / "ema.safetensors"), of(3))
    assert torch.equal(read(folder / "ema.pt"), of(3))
    assert bytes_on_disk(folder) == (folder / "model.safetensors").stat().st_size
    assert Source(str(folder)).content != Source(str(folder / "ema.safetensors")).content


def test_every_command_compresses_and_prunes_the_file_that_is_named(folder, tmp_path):
    tensors = {k: 3 * v for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "ema.safetensors")
    scan = spectra.scan(folder / "ema.safetensors", tmp_path / "s.zarr")
    rank_map = spectra.allocate(scan, err=0.6, method="uniform")
    spectra.compress(str(folder / "ema.safetensors"), rank_map, tmp_path / "c")
    held = load_file(tmp_path / "c" / "model.safetensors")
    embedding = "model.embed_tokens.weight"
    assert torch.equal(held[embedding], tensors[embedding])
    with pytest.raises(InputError, match="its weights hash to"):
        spectra.compress(str(folder), rank_map, tmp_path / "d")


def test_the_order_is_that_of_transformers(tmp_path):
    folder = tmp_path / "m"
    scaled(2).save_pretrained(folder, max_shard_size="20KB")  # with an index
    assert (folder / "model.safetensors.index.json").exists()
    torch.save(scaled(5).state_dict(), folder / "pytorch_model.bin")
    assert torch.equal(read(folder), of(2))
    scaled(3).save_pretrained(tmp_path / "new")
    shutil.copy(tmp_path / "new" / "model.safetensors", folder)  # the index is of old shards
    theirs = AutoModelForCausalLM.from_pretrained(folder).get_submodule(Q).weight
    assert torch.equal(read(folder), theirs)
    assert torch.equal(theirs, of(3))


def test_an_index_of_shards_that_are_gone_does_not_hide_the_file(tmp_path):
    folder = tmp_path / "m"
    small_llama().save_pretrained(folder, max_shard_size="20KB")
    small_llama().save_pretrained(folder)  # leaves the index
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()
    assert torch.equal(read(folder), of(1))


def test_numbered_shards_without_an_index_are_one_checkpoint_whatever_lies_beside(tmp_path):
    folder = tmp_path / "m"
    small_llama().save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors.index.json").unlink()
    tensors = scaled(7).state_dict()
    for name in ("ema", "consolidated"):
        save_file({k: v.clone() for k, v in tensors.items()}, folder / f"{name}.safetensors")
    assert torch.equal(read(folder), of(1))
    first = sorted(folder.glob("model-0*"))[0]
    with pytest.raises(InputError, match=r"is one of \d+ files of a checkpoint"):
        open_checkpoint(str(first))
    next(iter(folder.glob("model-00002*"))).unlink()
    with pytest.raises(InputError, match="is missing"):
        spectra.scan(folder, tmp_path / "s.zarr")


def test_of_several_files_that_could_be_meant_none_is_taken(folder):
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    shutil.copy(folder / "one.safetensors", folder / "other.safetensors")
    with pytest.raises(InputError, match=r"name one of one\.safetensors, other\.safetensors"):
        open_checkpoint(str(folder))
    (folder / "other.safetensors").unlink()
    assert torch.equal(read(folder), of(1))


def test_parts_of_tensor_parallel_weights_are_no_model(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    for part in range(2):
        half = {k: v.chunk(2)[part].clone() for k, v in tensors.items() if v.ndim == 2}
        torch.save(half, folder / f"consolidated.{part:02d}.pth")
    for place in (folder, folder / "consolidated.00.pth"):
        with pytest.raises(InputError, match="each hold a part of every matrix"):
            open_checkpoint(str(place))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.gguf", "config.json"]
)
def test_a_pointer_of_git_lfs_is_called_so(folder, name):
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(POINTER)
    for place in (folder, folder / name) if name != "config.json" else (folder,):
        with pytest.raises(InputError, match=f"{name} is a pointer of Git LFS"):
            open_checkpoint(str(place))


def gguf_file(path, tensors, part=0, parts=1, split=True):
    """A LLaMA as llama.cpp stores it, or a part of one."""
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "mlp.up_proj": "ffn_up"}
    writer = gguf.GGUFWriter(path, "llama")
    if part == 0:
        writer.add_block_count(2)
        writer.add_embedding_length(32)
    if split and parts > 1:
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", parts)
    stored = [
        (f"blk.{layer}.{short}.weight", tensors[f"model.layers.{layer}.{name}.weight"])
        for layer in range(2)
        for name, short in names.items()
    ]
    for name, value in stored[part * len(stored) // parts : (part + 1) * len(stored) // parts]:
        writer.add_tensor(name, np.ascontiguousarray(value.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["m-{:05d}-of-00002.gguf", "m.gguf.part{}.gguf"])
def test_a_model_in_several_gguf_files_is_one_whatever_their_names(tmp_path, name):
    tensors = dict(small_llama().state_dict())
    gguf_file(tmp_path / "whole.gguf", tensors)
    whole = open_checkpoint(str(tmp_path / "whole.gguf"))
    parts = tmp_path / "parts"
    parts.mkdir()
    for part in range(2):
        gguf_file(parts / name.format(part + 1), tensors, part, 2)
    (parts / "mmproj-m.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes())
    for place in (parts, parts / name.format(1), parts / name.format(2)):
        joined = open_checkpoint(str(place))
        assert set(joined.matrices) == set(whole.matrices)
        assert all(torch.equal(joined.read(m), whole.read(m)) for m in joined.matrices)
        assert joined.config["num_hidden_layers"] == 2
    (parts / name.format(2)).unlink()
    for place in (parts / name.format(1),):
        with pytest.raises(InputError, match="part 2 of 2 is missing next to the others"):
            open_checkpoint(str(place))


def test_a_gguf_file_that_lacks_a_block_is_told(tmp_path):
    tensors = dict(small_llama().state_dict())
    gguf_file(tmp_path / "m.gguf", tensors, 0, 2, split=False)  # says two blocks, holds one
    with pytest.raises(InputError, match="declares 2 blocks"):
        open_checkpoint(str(tmp_path / "m.gguf"))


def test_checkpoints_beside_the_one_that_is_read_are_said(folder, tmp_path):
    for name in ("checkpoint-10", "checkpoint-best"):
        shutil.copytree(folder, tmp_path / "steps" / name)
    shutil.copytree(folder, folder / "checkpoint-20")
    with pytest.warns(CheckpointNote, match="itself, not checkpoint-20 in it"):
        addresses([str(folder)])
    with pytest.warns(CheckpointNote, match="checkpoint-best in .* is left out: no step"):
        assert len(addresses([str(tmp_path / "steps")])) == 1


def test_a_hubs_cache_is_read_by_its_main_branch(folder, tmp_path):
    cache = tmp_path / "models--owner--name"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(folder, cache / "snapshots" / commit)
    with pytest.raises(InputError, match="2 snapshots"):
        addresses([str(cache)])
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("b" * 40)
    assert addresses([str(cache)])[0].name == "b" * 40
    blob = cache / "blobs"
    blob.mkdir()
    file = cache / "snapshots" / ("b" * 40) / "model.safetensors"
    file.rename(blob / "0123")
    file.symlink_to("../../blobs/0123")
    assert torch.equal(read(file), of(1))
    assert bytes_on_disk(cache) == bytes_on_disk(file) == (blob / "0123").stat().st_size
    assert Source(str(cache)).content == Source(str(file)).content is not None


def test_an_adapter_is_no_checkpoint(folder, tmp_path):
    (tmp_path / "adapter").mkdir()
    lora = {f"base_model.model.{Q}.lora_A.weight": torch.ones(2, 32)}
    save_file(lora, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is a peft adapter, not a checkpoint"):
        open_checkpoint(str(tmp_path / "adapter"))
    (folder / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="a checkpoint and an adapter"):
        open_checkpoint(str(folder))


def test_the_weights_that_a_configuration_names_are_used(folder):
    tensors = {k: 3 * v for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "named.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"transformers_weights": "named.safetensors"})
    )
    assert torch.equal(read(folder), of(3))
    tokens = random_batch(0)
    theirs = AutoModelForCausalLM.from_pretrained(folder)(input_ids=tokens).logits
    assert torch.equal(load_whole(str(folder)).model(input_ids=tokens).logits, theirs)

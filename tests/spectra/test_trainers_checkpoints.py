"""Checkpoints as trainers leave them: torch.distributed, DeepSpeed, accelerate, Lightning."""

import argparse
import pickle
import shutil

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import MetadataIndex

import spectra
from spectra.checkpoint.address import addresses, steps_of
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.models.loading import load_whole
from spectra_data.errors import InputError
from tests.small import small_llama

pytestmark = [
    pytest.mark.filterwarnings("ignore::spectra.checkpoint.notes.CheckpointNote"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),
]
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def model():
    return small_llama()


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    """The matrices of the model's checkpoint in Hugging Face's format."""
    folder = tmp_path_factory.mktemp("plain")
    model.save_pretrained(folder)
    return matrices(folder)


def matrices(place):
    opened = open_checkpoint(str(place))
    return {matrix.name: opened.read(matrix) for matrix in opened.matrices}


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(value, expected[name]) for name, value in found.items()
    )


def distributed(folder, state, config=None):
    """A checkpoint that torch.distributed saved, by this process alone."""
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    if config is not None:
        config.save_pretrained(folder)
    return folder


def with_state(model):
    """What a trainer saves: weights, and the optimizer's state next to them."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    model.zero_grad()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_folder_of_torch_distributed_is_read(model, plain, tmp_path, nested, described):
    state = model.state_dict()
    state = {"model": state, "optim": {"m": state}, "step": 7} if nested else state
    folder = distributed(tmp_path / "step-7", state, model.config if described else None)
    assert same(matrices(folder), plain)
    assert same(matrices(folder / ".metadata"), plain)
    assert steps_of(addresses([str(folder)])) == [7]


def test_states_of_the_optimizer_are_no_weights(tmp_path):
    state = with_state(small_llama())
    found = matrices(distributed(tmp_path / "a", state))
    expected = state["model"]
    assert found
    assert all(torch.equal(v, expected[f"{n}.weight"]) for n, v in found.items())
    flat = {**state["model"], **{f"optimizer.{n}": v for n, v in state["model"].items()}}
    assert same(matrices(distributed(tmp_path / "b", flat)), found)


def test_a_distributed_checkpoint_is_a_model_like_any_other(model, tmp_path):
    folder = distributed(tmp_path / "m", model.state_dict(), model.config)
    loaded = load_whole(str(folder)).model
    assert torch.equal(loaded.get_submodule(Q).weight, model.get_submodule(Q).weight)
    rank_map = spectra.allocate(scanned(folder, tmp_path), err=0.7, method="uniform")
    spectra.compress(str(folder), rank_map, tmp_path / "c")
    assert (
        open_checkpoint(str(tmp_path / "c")).matrices.keys()
        == open_checkpoint(str(folder)).matrices.keys()
    )


def scanned(place, tmp_path):
    spectra.scan(str(place), tmp_path / "scan.zarr")
    return tmp_path / "scan.zarr"


def test_a_checkpoint_is_known_by_the_files_that_hold_its_pieces(model, tmp_path):
    folder = distributed(tmp_path / "m", model.state_dict(), model.config)
    files = open_checkpoint(str(folder)).files
    assert set(files) == {".metadata", *(p.name for p in folder.glob("*.distcp"))}


def test_an_entry_of_a_stack_is_read_from_the_pieces_that_it_lies_in(tmp_path):
    stacked = torch.randn(4, 6, 5, dtype=torch.bfloat16)
    folder = distributed(tmp_path / "m", {"layers.0.experts.down_proj": stacked})
    found = matrices(folder)
    for number in range(4):
        assert torch.equal(found[f"layers.0.experts.{number}.down_proj"], stacked[number])


def pieces(tmp_path, rows=(3, 5)):
    """A tensor that two processes saved, a part of its rows each."""
    whole = torch.randn(sum(rows), 6)
    folder = distributed(tmp_path / "whole", {"layers.0.q_proj.weight": whole})
    for number, part in enumerate(torch.split(whole, rows)):
        distributed(tmp_path / f"{number}", {"layers.0.q_proj.weight": part})
        name = f"__{number}_0.distcp"
        shutil.copy(next((tmp_path / f"{number}").glob("*.distcp")), folder / name)
    metadata = dcp.FileSystemReader(folder).read_metadata()
    ((_, place),) = metadata.storage_data.items()
    chunk = metadata.state_dict_metadata["layers.0.q_proj.weight"].chunks.pop()
    metadata.storage_data.clear()
    for number, first in enumerate((0, rows[0])):
        offsets = torch.Size([first, 0])
        size = (folder / f"__{number}_0.distcp").stat().st_size
        metadata.state_dict_metadata["layers.0.q_proj.weight"].chunks.append(
            type(chunk)(offsets, torch.Size([rows[number], 6]))
        )
        metadata.storage_data[MetadataIndex("layers.0.q_proj.weight", offsets)] = type(place)(
            f"__{number}_0.distcp", 0, size
        )
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder, whole, metadata


def test_the_pieces_of_several_processes_are_joined(tmp_path):
    folder, whole, _ = pieces(tmp_path)
    assert torch.equal(matrices(folder)["layers.0.q_proj"], whole)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "__1_0.distcp is missing, with layers.0.q_proj.weight"),
        ("truncated", "__1_0.distcp is truncated: layers.0.q_proj.weight ends at byte"),
        ("overwritten", "cannot read .metadata: layers.0.q_proj.weight"),
        ("lost piece", "describes 18 entries of layers.0.q_proj.weight, not 48"),
        ("outside", "../1/x.distcp is missing"),
        ("enormous", "bytes, not those of"),
    ],
)
def test_damaged_pieces_are_named(tmp_path, damage, message):
    folder, _, metadata = pieces(tmp_path)
    piece = folder / "__1_0.distcp"
    held = metadata.state_dict_metadata["layers.0.q_proj.weight"]
    last = MetadataIndex("layers.0.q_proj.weight", held.chunks[1].offsets)
    if damage == "missing":
        piece.unlink()
    elif damage == "truncated":
        piece.write_bytes(piece.read_bytes()[:-10])
    elif damage == "overwritten":
        piece.write_bytes(bytes(piece.stat().st_size))
    elif damage == "lost piece":
        held.chunks.pop()
    elif damage == "outside":
        piece.rename(tmp_path / "1" / "x.distcp")
        metadata.storage_data[last].relative_path = "../1/x.distcp"
    else:
        held.chunks[1].sizes = torch.Size([1 << 40, 6])
        held.size = torch.Size([(1 << 40) + 3, 6])
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError, match=message):
        spectra.scan(str(folder), tmp_path / "out.zarr")


def test_a_missing_file_is_one_line(model, tmp_path):
    folder = distributed(tmp_path / "m", model.state_dict(), model.config)
    next(folder.glob("*.distcp")).unlink()
    opened = open_checkpoint(str(folder))
    count = len(model.state_dict())
    (line,) = opened.problems
    assert line == f"__0_0.distcp is missing, with model.embed_tokens.weight and {count - 1} more"


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Harmful()), r"holds more than descriptions of tensors \(.*open\)"),
        (pickle.dumps(argparse.Namespace()), r"more than descriptions .*argparse.Namespace"),
        (pickle.dumps({"a": 1}), "was not written by torch.distributed.checkpoint"),
        (b"", "is truncated, or not written by"),
        (b"\x80\x04junk", "is truncated, or not written by"),
    ],
)
def test_nothing_but_descriptions_of_tensors_is_unpickled(
    model, tmp_path, monkeypatch, content, message
):
    monkeypatch.chdir(tmp_path)
    folder = distributed(tmp_path / "m", model.state_dict())
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_checkpoint(str(folder))
    assert not (tmp_path / "harm").exists()


def test_pieces_without_their_index_are_no_checkpoint(model, tmp_path):
    folder = distributed(tmp_path / "m", model.state_dict())
    piece = next(folder.glob("*.distcp"))
    with pytest.raises(InputError, match="holds pieces of tensors: name its folder"):
        open_checkpoint(str(piece))
    (folder / ".metadata").unlink()
    with pytest.raises(InputError, match=r"cannot be read without \.metadata"):
        open_checkpoint(str(folder))


def test_an_index_out_of_reach_and_a_hub_clients_notes(model, plain, tmp_path):
    folder = distributed(tmp_path / "m", model.state_dict())
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/remote-run", recursive=True)
    with pytest.raises(InputError, match=r"\.metadata is not on this machine: download its folder"):
        open_checkpoint("memory://remote-run")
    (folder / "model.safetensors.metadata").write_text("a commit, an etag, a time")
    assert same(matrices(folder), plain)
    with pytest.raises(InputError, match="is not a checkpoint"):
        open_checkpoint(str(folder / "model.safetensors.metadata"))


def test_a_run_of_accelerate_with_fsdp_is_a_series(model, plain, tmp_path):
    for step in (10, 20):
        home = tmp_path / "run" / f"checkpoint-{step}"
        distributed(home / "pytorch_model_fsdp_0", {"model": model.state_dict()})
        distributed(home / "optimizer_0", {"optimizer": model.state_dict()})
        (home / "scheduler.bin").write_bytes(b"")
        model.config.save_pretrained(home)
    found = addresses([str(tmp_path / "run")])
    assert steps_of(found) == [10, 20]
    assert all(same(matrices(address), plain) for address in found)
    (one,) = addresses([str(home)])
    assert one.step == 20
    assert same(matrices(one), plain)
    assert load_whole(str(home / "pytorch_model_fsdp_0")).model.config.hidden_size == 32


def deepspeed(folder, model, stage=2, **more):
    """A step's folder in the layout that DeepSpeed documents."""
    folder.mkdir(parents=True)
    (folder.parent / "latest").write_text(folder.name)
    (folder.parent / "zero_to_fp32.py").write_text("# joins the partitions")
    state = model.state_dict()
    shapes = [{name: value.shape for name, value in model.named_parameters()}]
    if stage == 3:
        state = {name: torch.empty(0, dtype=torch.bfloat16) for name in state}
    saved = {
        "module": state,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": shapes,
        "frozen_param_shapes": None,
        "lr_scheduler": {"last_epoch": 3},
        "skipped_steps": 0,
        "global_steps": 3,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": stage}},
        "ds_version": "0.17.0",
    } | more
    rank = "zero_pp_rank_0_" if stage == 3 else ""
    torch.save(saved, folder / f"{rank}mp_rank_00_model_states.pt")
    partition = {"optimizer_state_dict": {"zero_stage": stage, "scaler": Harmful.__name__}}
    torch.save(partition, folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return folder


@pytest.mark.parametrize("stage", [1, 2])
def test_whole_weights_of_deepspeed_are_read(model, plain, tmp_path, stage):
    folder = deepspeed(tmp_path / "run" / "global_step30", model, stage)
    model.config.save_pretrained(tmp_path / "run")
    for place in (folder, folder.parent, folder / "mp_rank_00_model_states.pt"):
        (address,) = addresses([str(place)])
        assert same(matrices(address), plain)
    assert addresses([str(folder.parent)])[0].step == 30
    loaded = load_whole(str(folder.parent)).model
    assert torch.equal(loaded.get_submodule(Q).weight, model.get_submodule(Q).weight)


def test_steps_of_deepspeed_are_a_series(model, tmp_path):
    for step in (10, 20):
        deepspeed(tmp_path / f"global_step{step}", model)
    assert steps_of(addresses([str(tmp_path)])) == [10, 20]


def test_the_weights_that_a_trainer_put_beside_deepspeeds_are_preferred(model, plain, tmp_path):
    home = tmp_path / "checkpoint-30"
    deepspeed(home / "global_step30", model, stage=3)
    model.save_pretrained(home)
    with pytest.warns(match="reading .*checkpoint-30 itself, not global_step30 in it"):
        assert same(matrices(home), plain)


@pytest.mark.parametrize("place", ["global_step30", "", "partition", "optimizer"])
def test_partitions_of_deepspeed_name_its_script(model, tmp_path, place):
    folder = deepspeed(tmp_path / "run" / "global_step30", model, stage=3)
    places = {
        "": folder.parent,
        "global_step30": folder,
        "partition": folder / "zero_pp_rank_0_mp_rank_00_model_states.pt",
        "optimizer": folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    }
    with pytest.raises(InputError, match=r"partitions of .*zero_to_fp32\.py"):
        open_checkpoint(str(places[place]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer_1_expert_0_mp_rank_00_model_states.pt", "an expert apart from the other weights"),
        ("layer_01-model_00-model_states.pt", "one stage of a pipeline"),
        ("mp_rank_01_model_states.pt", "each hold a part of every matrix"),
    ],
)
def test_parts_of_deepspeed_that_are_no_whole_model_are_refused(model, tmp_path, name, message):
    folder = deepspeed(tmp_path / "global_step30", model)
    shutil.copy(folder / "mp_rank_00_model_states.pt", folder / name)
    with pytest.raises(InputError, match=message):
        open_checkpoint(str(folder))


def lightning(path, model, prefix="model.", **more):
    """A file in the layout of Lightning's Trainer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    saved = {
        "epoch": 1,
        "global_step": 30,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state | more.pop("extra", {}),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3, "betas": (0.9, 0.95)},
    } | more
    torch.save(saved, path)
    return path


@pytest.mark.parametrize("prefix", ["", "model.", "net.", "net.model.", "_forward_module."])
def test_a_checkpoint_of_lightning_is_read(model, plain, tmp_path, prefix):
    path = lightning(tmp_path / "epoch=1-step=30.ckpt", model, prefix)
    model.config.save_pretrained(tmp_path)
    assert same(matrices(path), plain)
    assert same(matrices(tmp_path), plain)
    assert steps_of(addresses([str(path)])) == [30]
    loaded = load_whole(str(path)).model
    assert torch.equal(loaded.get_submodule(Q).weight, model.get_submodule(Q).weight)


@pytest.mark.parametrize("prefix", ["model.", "net.", "task.net."])
def test_other_modules_of_a_lightning_module_do_not_hide_the_model(model, plain, tmp_path, prefix):
    extra = {"loss.weight": torch.ones(3), "teacher_scale": torch.ones(())}
    path = lightning(tmp_path / "a.ckpt", model, prefix, extra=extra)
    model.config.save_pretrained(tmp_path)
    with pytest.warns(match="2 weights are not of LlamaForCausalLM: loss.weight, teacher_scale"):
        assert same(matrices(path), plain)


def test_hyperparameters_that_are_objects_are_not_unpickled(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for harm in (argparse.Namespace(lr=1), Harmful()):
        path = lightning(tmp_path / "a.ckpt", model, hyper_parameters={"args": harm})
        with pytest.raises(InputError, match=r"a\.ckpt holds more than tensors and is not unpick"):
            open_checkpoint(str(path))
    assert not (tmp_path / "harm").exists()


def test_a_folder_that_lightning_made_with_deepspeed_or_fsdp_is_read(model, plain, tmp_path):
    home = tmp_path / "epoch=1-step=30.ckpt"
    deepspeed(home / "checkpoint", model)
    assert same(matrices(home), plain)
    assert addresses([str(home)])[0].step == 30
    other = distributed(tmp_path / "step=40.ckpt", {"model": model.state_dict()})
    torch.save({"epoch": 1}, other / "meta.pt")
    assert same(matrices(other), plain)
    assert steps_of(addresses([str(other)])) == [40]

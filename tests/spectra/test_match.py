"""A model is what its checkpoint holds: nothing made up, nothing left out, names that meet."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

import spectra
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.checkpoint.notes import CheckpointNote
from spectra.cli import main
from spectra.models.loading import load_whole
from spectra_data.errors import InputError
from tests.small import random_batch, small_llama, small_model

NORM = "model.norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "m"
    small_llama().save_pretrained(folder)
    return folder


def rewrite(folder, change):
    tensors = change(load_file(folder / "model.safetensors"))
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})


def without(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def say_layers(folder, count):
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": count}
    (folder / "config.json").write_text(json.dumps(config))


DAMAGES = {
    "a matrix is lost": (lambda m: rewrite(m, without(UP)), UP),
    "a norm is lost": (lambda m: rewrite(m, without(NORM)), NORM),
    "the head is lost": (lambda m: rewrite(m, without("lm_head.weight")), "lm_head.weight"),
    "there are more layers in the configuration": (lambda m: say_layers(m, 3), "layers.2."),
    "there are fewer layers in the configuration": (lambda m: say_layers(m, 1), "layers.1."),
    "a matrix is cut": (
        lambda m: rewrite(m, lambda tensors: tensors | {UP: tensors[UP][:40]}),
        UP,
    ),
    "a tensor is of something else": (
        lambda m: rewrite(m, lambda tensors: tensors | {"v_head.weight": torch.ones(1, 32)}),
        "v_head.weight",
    ),
    "every name has another one inside": (
        lambda m: rewrite(m, lambda tensors: {f"a{i}.{k}": v for i, (k, v) in
                                              enumerate(tensors.items())}),
        "model.layers.0.mlp.down_proj.weight",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::spectra.checkpoint.notes.CheckpointNote")
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_weight_is_made_up_or_left_out(model, damage):
    spoil, named = DAMAGES[damage]
    spoil(model)
    with pytest.raises(InputError) as told:
        load_whole(str(model))
    assert named in str(told.value)
    assert len(str(told.value).splitlines()) == 1


COMMANDS = {
    "evaluate": ["--windows", "1", "--seq-len", "16"],
    "scan": ["--out", "OUT"],
    "compress": ["--budget", "0.8", "--windows", "2", "--seq-len", "16", "--out", "OUT"],
    "prune": ["--sparsity", "0.5", "--windows", "2", "--seq-len", "16", "--out", "OUT"],
    "finetune": ["--train", "full", "--steps", "1", "--seq-len", "16", "--batch-size", "1",
                 "--precision", "float32", "--out", "OUT"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("spoil", [without(UP), lambda t: t | {UP: t[UP] * torch.nan}])
def test_every_command_names_what_is_lost_or_not_finite(
    model, tmp_path, capsys, shared_text, command, spoil
):
    rewrite(model, spoil)
    out = tmp_path / "out"
    arguments = [argument.replace("OUT", str(out)) for argument in COMMANDS[command]]
    if command in ("evaluate", "finetune"):
        arguments += ["--data", shared_text]
    if command in ("compress", "prune"):
        arguments += ["--calibration", shared_text]
    code = main([command, str(model), *arguments])
    err = capsys.readouterr().err
    assert code == (1 if command == "scan" and "NaN" in err else 2), err
    assert UP.removesuffix(".weight") in err.splitlines()[-1]
    assert command == "scan" or not (out / "config.json").exists()


@pytest.fixture
def shared_text(model, tmp_path):
    """Text, and a tokenizer of 64 tokens beside the model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(63)} | {"<unk>": 63}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", unk_token="<unk>")
    fast.save_pretrained(model)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(" ".join(f"w{(i * j) % 63}" for i in range(90)) for j in range(40)))
    return str(text)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda name: f"_orig_mod.{name}", "_orig_mod."),
        (lambda name: f"module.{name}", "module."),
        (lambda name: f"student.model.{name}", "student."),
        (lambda name: f"module._orig_mod.{name}", "_orig_mod., module."),
        (
            lambda name: name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
            "_checkpoint_wrapped_module.",
        ),
    ],
)
def test_what_wrappers_put_into_names_is_left_out_and_said(model, wrap, said):
    tokens = random_batch(0)
    expected = AutoModelForCausalLM.from_pretrained(model)(input_ids=tokens).logits
    names = {matrix.name for matrix in open_checkpoint(str(model)).matrices}
    rewrite(model, lambda tensors: {wrap(name): value for name, value in tensors.items()})
    with pytest.warns(CheckpointNote, match=f"without {said}$"):
        opened = open_checkpoint(str(model))
    assert {matrix.name for matrix in opened.matrices} == names
    with pytest.warns(CheckpointNote, match="reading names without"):
        loaded = load_whole(str(model)).model
    assert torch.equal(loaded(input_ids=tokens).logits, expected)


def test_a_prefix_that_transformers_drops_itself_is_dropped_here_too(model):
    tokens = random_batch(0)
    expected = AutoModelForCausalLM.from_pretrained(model)(input_ids=tokens).logits
    rewrite(model, lambda tensors: {f"model.{name}": value for name, value in tensors.items()})
    assert all(m.name.startswith("model.layers.") for m in open_checkpoint(str(model)).matrices)
    assert torch.equal(load_whole(str(model)).model(input_ids=tokens).logits, expected)


def test_a_tied_head_may_be_left_out(tmp_path):
    small_llama(tie_word_embeddings=True).save_pretrained(tmp_path / "m")
    assert "lm_head.weight" not in load_file(tmp_path / "m" / "model.safetensors")
    load_whole(str(tmp_path / "m"))
    assert open_checkpoint(str(tmp_path / "m")).match.faults == 0


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gpt_neox", "opt", "phi3", "mixtral", "qwen3_moe", "gpt_oss"]
)
def test_checkpoints_of_every_family_match_their_configuration(tmp_path, family):
    model = small_model(family)
    model.save_pretrained(tmp_path)
    opened = open_checkpoint(str(tmp_path))
    assert opened.match is not None
    assert opened.match.faults == 0
    in_memory = {matrix.name for matrix in open_checkpoint(model).matrices}
    assert {matrix.name for matrix in opened.matrices} == in_memory


def gemma(folder):
    """A model of two towers, whose tensors are stored under other names than its modules have."""
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "max_position_embeddings": 64}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
              "num_attention_heads": 4, "image_size": 28, "patch_size": 14}  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))
    model.save_pretrained(folder)
    return model


def test_scan_map_compress_and_peft_meet_in_the_names_of_modules(tmp_path):
    from peft import LoraConfig, get_peft_model

    from spectra.exports.formats import to_peft

    gemma(tmp_path / "m")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert not any(name.startswith("model.language_model.layers") for name in stored)
    scan = spectra.scan(tmp_path / "m", tmp_path / "s.zarr")
    names = scan["spectra"].matrix.values.tolist()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    modules = {n for n, m in loaded.named_modules() if isinstance(m, torch.nn.Linear)}
    language = {n for n in modules if n.startswith("model.language_model.layers")}
    assert set(names) == language
    rank_map = spectra.allocate(scan, err=0.6, method="uniform")
    made = spectra.compress(str(tmp_path / "m"), rank_map, tmp_path / "c")
    assert not made.left_dense
    small = load_whole(str(tmp_path / "c")).model
    assert small(input_ids=random_batch(0)).logits.isfinite().all()
    config = json.loads(to_peft(rank_map))
    keys = ("r", "target_modules", "rank_pattern", "lora_alpha", "alpha_pattern")
    adapted = get_peft_model(loaded, LoraConfig(**{k: config[k] for k in keys if k in config}))
    with_adapters = {n for n, _ in adapted.named_modules() if n.endswith("lora_A")}
    assert len(with_adapters) == len(rank_map.lrc)
    assert all("language_model" in name for name in with_adapters)


def test_other_towers_are_left_out_with_a_reason_and_taken_in_on_request(tmp_path):
    model = gemma(tmp_path / "m")
    opened = open_checkpoint(str(tmp_path / "m"))
    assert sum("another tower" in s.reason for s in opened.skipped) == len(opened.towers) == 18
    assert {m.name for m in open_checkpoint(model).towers} == {m.name for m in opened.towers}
    scan = spectra.scan(tmp_path / "m", tmp_path / "s.zarr", towers=True)
    assert len(scan["spectra"].matrix) == 32
    rank_map = spectra.allocate(scan, err=0.6, method="uniform")
    made = spectra.compress(str(tmp_path / "m"), rank_map, tmp_path / "c")
    assert {m.name for m in made.rank_map.modules if m.factored} >= {m.name for m in opened.towers}


def test_a_model_that_transformers_does_not_know_is_read_by_its_own_names(tmp_path):
    small_llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "of_next_year"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(str(tmp_path))
    assert opened.match is None
    assert len(opened.matrices) == 14


def test_a_configuration_without_a_number_of_layers_is_compared_with_nothing(tmp_path):
    weights = {f"model.layers.0.self_attn.{name}_proj.weight": torch.eye(16) for name in "qk"}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert len(open_checkpoint(str(tmp_path)).matrices) == 2
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "num_hidden_layers": 1})
    )
    with pytest.raises(InputError, match=r"does not fit its config\.json"):
        open_checkpoint(str(tmp_path))


def test_layers_that_no_file_could_hold_are_refused_at_once(model):
    say_layers(model, 10**9)
    with pytest.raises(InputError, match="num_hidden_layers = 1000000000, but the checkpoint"):
        open_checkpoint(str(model))

"""Options: validated where they are made, and a file that gives them back."""

import dataclasses
import json
import math
from typing import Annotated, Literal, get_args, get_origin

import pytest

from spectra.keywords import Share, names_of
from spectra_data.errors import InputError
from spectra_pretrain import command as pretraining
from spectra_pretrain.finetuning import command as finetuning
from spectra_pretrain.finetuning.options import FinetuneOptions
from spectra_pretrain.optimizers.galore import GaLoreSettings
from spectra_pretrain.optionfile import differences, from_dict, read_options, to_dict
from spectra_pretrain.options import PretrainOptions
from spectra_pretrain.parametrizations.adapters import LoraSettings
from spectra_pretrain.presets import PRESETS, model_config
from spectra_pretrain.schedule import factor
from spectra_pretrain.ways import OptimizerOptions


def test_options_come_back_from_their_dictionary():
    flat = to_dict(PretrainOptions()) | {"steps": 7, "vocab_size": 300, "clip": 2, "compile": True}
    options = from_dict(json.loads(json.dumps(flat)), "test", PretrainOptions)
    assert to_dict(options) == flat
    assert options.corpus.vocab_size == 300
    assert options.optimizer.clip == 2.0


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"stepps": 3}, "unknown options: stepps"),
        ({"steps": "many"}, "steps cannot be 'many'"),
        ({"steps": True}, "steps cannot be True"),
        ({"precision": "float8"}, "precision cannot be 'float8'"),
        ({"batch_size": 8, "micro_batch_size": 3}, "--micro-batch-size 3 does not divide"),
        ({"steps": 0, "seq_len": 1}, "--steps is at least 1, not 0; --seq-len is at least 2"),
        ({"validation_fraction": 0.0}, "--validation-fraction is between 0 and 1"),
    ],
)
def test_wrong_options_are_named(flat, message):
    with pytest.raises(InputError, match=message):
        from_dict(flat, "test", PretrainOptions)


@pytest.mark.parametrize("content", ["{", "[1]", '"text"'])
def test_a_file_that_holds_no_options_says_so(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.json"):
        read_options(tmp_path / "a.json", PretrainOptions)


def test_differences_name_what_must_not_change_on_resuming():
    one = PretrainOptions()
    other = from_dict(
        {"steps": 5, "clip": 0.5, "device": "cpu", "keep_checkpoints": 9}, "test", PretrainOptions
    )
    assert differences(one, other) == ["--steps 5 (was 1000)", "--clip 0.5 (was 1.0)"]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("llama_9m", 9),
        ("llama_60m", 58),
        ("llama_130m", 134),
        ("llama_350m", 368),
        ("llama_7b", 6738),
    ],
)
def test_presets_have_the_parameters_of_the_family(name, millions):
    config = model_config(name)
    block = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    count = config.num_hidden_layers * block + 2 * config.vocab_size * config.hidden_size + norms
    assert round(count / 1e6) == millions
    assert config.rms_norm_eps == 1e-6
    assert not config.tie_word_embeddings


def test_a_presets_heads_divide_its_width():
    assert all(size.hidden % size.heads == 0 for size in PRESETS.values())


def test_a_hugging_face_config_is_read_with_its_old_keys(tmp_path):
    path = tmp_path / "config.json"
    fields = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    path.write_text(json.dumps(fields | {"max_sequence_length": 77, "pad_token_id": -1}))
    for spec in (path, tmp_path):
        config = model_config(str(spec))
        assert config.max_position_embeddings == 77
        assert config.pad_token_id is None
        assert config.hidden_size == 64


@pytest.mark.parametrize("content", ["{}", "not json", '{"model_type": "no-such-model"}'])
def test_a_file_that_is_no_configuration_says_so(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json is no"):
        model_config(str(tmp_path / "config.json"))


def test_an_unknown_model_lists_the_presets():
    with pytest.raises(InputError, match="llama_9m, llama_20m"):
        model_config("llama_8m")


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    options = OptimizerOptions(learning_rate=2.0, warmup=0.1, min_lr_ratio=0.1)
    rates = [options.learning_rate * factor(step, 100, options) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[-1] == pytest.approx(0.2)
    assert rates[54] == pytest.approx(1.1, abs=0.05)
    assert sorted(rates[10:], reverse=True) == rates[10:]


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_learning_rate_is_positive_in_the_shortest_runs(warmup, steps):
    options = OptimizerOptions(warmup=warmup, min_lr_ratio=0.1)
    rates = [options.learning_rate * factor(step, steps, options) for step in range(steps)]
    assert all(0 < rate <= options.learning_rate and math.isfinite(rate) for rate in rates)


COMMANDS = {"pretrain": (pretraining, PretrainOptions), "finetune": (finetuning, FinetuneOptions)}
VALUES = {
    "micro_batch_size": "2",
    "model": "llama_20m",
    "map": "map.json",
    "optimizer": "galore",
    "record_spectra": "weight,gradient",
    "train": "nlrc",
    "vocab_size": "300",
}
"""Of options that do not take just any value."""
TOGETHER = {
    "distill_weight": ["--teacher", "other"],
    "galore": ["--optimizer", "galore"],
    "lora": ["--train", "lora"],
    "map": ["--train", "lrc"],
    "micro_batch_size": ["--batch-size", "4"],
    "questions": ["--task", "boolq"],
    "task_data": ["--task", "boolq"],
    "temperature": ["--teacher", "other"],
}
"""What options need beside them, by the beginning of their names."""


def fields_of(options):
    """Every option, in all groups: name, type, default."""
    names = names_of(type(options))
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value)
        else:
            annotated = get_origin(field.type) is Annotated
            yield names[field.name], get_args(field.type)[0] if annotated else field.type, value


def to_dict_of(settings):
    return {name: value for name, _, value in fields_of(settings)}


def another(name, kind, default) -> list[str]:
    """An option as it is typed, with a value that is not its default."""
    option = f"--{name.replace('_', '-')}"
    members = [float if m == Share else m for m in ([kind] if kind == Share else get_args(kind))]
    members = members or [kind]
    literals = [value for m in members if get_origin(m) is Literal for value in get_args(m)]
    literals += members if get_origin(kind) is Literal else []
    if name == "checkpoint":
        return ["another"]
    if name in VALUES:
        return [option, VALUES[name]]
    if bool in members:
        return [option if not default else f"--no-{name.replace('_', '-')}"]
    if literals:
        return [option, next(value for value in literals if value != default)]
    if int in members:
        return [option, str((default or 0) + 2)]
    if float in members:
        return [option, str(default / 2 if default else 0.5)]
    return [option, "another"]


def typed_commands():
    for command, (_, kind) in COMMANDS.items():
        own = [GaLoreSettings(), LoraSettings()]
        for name, type_, default in (f for options in (kind(), *own) for f in fields_of(options)):
            together = next((v for k, v in TOGETHER.items() if name.startswith(k)), [])
            first = [] if command == "pretrain" or name == "checkpoint" else ["model"]
            typed = [*first, *together, *another(name, type_, default)]
            yield pytest.param(command, name, typed, id=f"{command}-{name}")


@pytest.mark.parametrize(("command", "name", "typed"), list(typed_commands()))
def test_the_command_that_started_a_run_resumes_it(tmp_path, command, name, typed):
    module, kind = COMMANDS[command]
    arguments = [*typed, "--out", str(tmp_path)]
    started = module.COMMAND.parse(arguments)
    (tmp_path / f"{command}.json").write_text(json.dumps(to_dict(started.options)))
    usual = to_dict(kind()) | to_dict_of(GaLoreSettings()) | to_dict_of(LoraSettings())
    assert to_dict_of(started.options)[name] != usual[name]
    resumed = dataclasses.replace(started, resume=True)
    assert module.COMMAND.parse([*arguments, "--resume"]) == resumed


def test_a_run_that_was_started_from_a_file_is_resumed_with_it(tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"steps": 7, "record_early": True}))
    arguments = ["--config", str(settings), "--clip", "2", "--out", str(tmp_path)]
    started = pretraining.COMMAND.parse(arguments)
    (tmp_path / "pretrain.json").write_text(json.dumps(to_dict(started.options)))
    resumed = pretraining.COMMAND.parse([*arguments, "--resume"])
    assert resumed.options == started.options
    settings.write_text(json.dumps({"steps": 8, "record_early": True}))
    with pytest.raises(InputError, match=r"--steps 8 \(was 7\)"):
        pretraining.COMMAND.parse([*arguments, "--resume"])


def test_a_run_of_an_earlier_version_is_resumed_with_its_list_of_steps(tmp_path):
    fields = to_dict(PretrainOptions()) | {"record_every": 50, "record_at": "0,10"}
    (tmp_path / "pretrain.json").write_text(json.dumps(fields))
    resumed = pretraining.COMMAND.parse(["--resume", "--out", str(tmp_path)])
    assert resumed.options.recording.every == (0, 10)
    for option in ("--record-at", "--record-every"):
        typed = [option, "0,10", "--resume", "--out", str(tmp_path)]
        assert pretraining.COMMAND.parse(typed) == resumed
    with pytest.raises(InputError, match=r"--record-every 0,20 \(was 0,10\)"):
        pretraining.COMMAND.parse(["--record-at", "0,20", "--resume", "--out", str(tmp_path)])
    fields |= {"record_at": None, "record_background": "wait"}
    (tmp_path / "pretrain.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"--record-every 0,10 \(was 50\)"):
        pretraining.COMMAND.parse(["--record-at", "0,10", "--resume", "--out", str(tmp_path)])
    elsewhere = ["--record-background", "off", "--resume", "--out", str(tmp_path)]
    assert pretraining.COMMAND.parse(elsewhere).options.recording.background == "off"


CHOSEN = {"precision": "float32", "vocab_size": 300}


def test_what_a_run_chose_stays_when_it_is_resumed(tmp_path):
    (tmp_path / "pretrain.json").write_text(json.dumps(to_dict(PretrainOptions()) | CHOSEN))
    for typed in ([], ["--precision", "auto", "--vocab-size", "auto"]):
        arguments = [*typed, "--resume", "--out", str(tmp_path)]
        resumed = pretraining.COMMAND.parse(arguments).options
        assert (resumed.precision, resumed.corpus.vocab_size) == ("float32", 300)
    message = r"--precision bfloat16 \(was float32\), --vocab-size model \(was 300\)"
    other = ["--precision", "bfloat16", "--vocab-size", "model"]
    with pytest.raises(InputError, match=message):
        pretraining.COMMAND.parse([*other, "--resume", "--out", str(tmp_path)])
    elsewhere = tmp_path / "finetuning"
    elsewhere.mkdir()
    fields = to_dict(FinetuneOptions(checkpoint="model")) | {"precision": "bfloat16"}
    (elsewhere / "finetune.json").write_text(json.dumps(fields))
    arguments = ["model", "--precision", "auto", "--resume", "--out", str(elsewhere)]
    assert finetuning.COMMAND.parse(arguments).options.precision == "bfloat16"


def test_a_run_of_an_earlier_version_keeps_the_models_own_vocabulary(tmp_path):
    fields = to_dict(PretrainOptions()) | {"precision": "bfloat16", "vocab_size": None}
    (tmp_path / "pretrain.json").write_text(json.dumps(fields))
    resumed = pretraining.COMMAND.parse(["--resume", "--out", str(tmp_path)]).options
    assert (resumed.precision, resumed.corpus.vocab_size) == ("bfloat16", "model")
    # repeated from its file, it is not fitted either
    assert read_options(tmp_path / "pretrain.json", PretrainOptions) == resumed
    (tmp_path / "pretrain.json").write_text(json.dumps(fields | {"tokenizer": "folder"}))
    loaded = pretraining.COMMAND.parse(["--resume", "--out", str(tmp_path)]).options
    assert loaded.corpus.tokenizer == "folder"


def test_a_switch_that_was_not_given_is_a_difference(tmp_path):
    (tmp_path / "pretrain.json").write_text(json.dumps(to_dict(PretrainOptions())))
    with pytest.raises(InputError, match=r"--record-early True \(was False\)"):
        pretraining.COMMAND.parse(["--record-early", "--resume", "--out", str(tmp_path)])

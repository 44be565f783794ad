"""A pretraining run from its options: corpus, model, recorder, loop, and what it leaves."""

import json
import math
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console

from data.errors import InputError
from data.sources import open_source
from data.tokenizer import TRAIN, load_tokenizer, resolve_tokenizer
from data.tokens import TokenFiles, default_limit, open_tokens, prepare_tokens
from data.windows import Windows
from pretrain.checkpoint import Checkpoints, export_model, load_model, restore_training, step_of
from pretrain.display import open_display
from pretrain.loop import Training, run_loop
from pretrain.options import PretrainOptions, to_dict
from pretrain.plan import make_plan, measure, random_windows
from pretrain.presets import default_vocabulary, model_config
from pretrain.signals import StopRequest
from spectra.commands.options import program_name
from spectra.recording.recorder import NullRecorder, Recorder
from spectra.recording.start import record
from spectra.store.durable import write_file
from spectra.store.location import exists
from spectra.store.lock import locked

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

RUN_FILES = ("pretrain.json", "spectra.zarr", "checkpoints", "model")
Summary = dict[str, Any]


class RunInterruptedError(Exception):
    """A stop was asked for, and everything is saved."""

    def __init__(self, signal: signal.Signals, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def pretrain(options: PretrainOptions, out: Path, *, resume: bool = False) -> Summary:
    """Pretrain, record, and leave a run in `out`.

    Parameters
    ----------
    options
        Everything that decides the run.
    out
        Folder of the run: spectra.zarr, checkpoints/, model/, pretrain.json, data.json,
        summary.json.
    resume
        Go on from the last checkpoint in `out`; begin where there is none.

    Returns
    -------
    The run's figures: steps, tokens, train_loss, validation_loss, validation_perplexity,
    tokens_per_second, recorder_share, store, and why the recorder stopped before the end, if so.

    Raises
    ------
    InputError
        When something asked for cannot be done.
    NonFiniteError
        When the loss or a gradient is not finite.
    RunInterruptedError
        When SIGINT or SIGTERM came; the run can be resumed.
    """
    console = Console(stderr=True)
    _silence_library_bars()
    _require_one_process()
    checkpoints = Checkpoints(out / "checkpoints", options.checkpoints.keep_checkpoints)
    device = _device(options.machine.device)
    _require_place(out, resume)
    with locked(out):
        latest = checkpoints.latest() if resume else None
        finished = _read_json(out / "summary.json")
        if latest and step_of(latest) == options.steps and finished is not None:
            console.print(f"{out} is finished: nothing left to do")
            return finished
        _require_parts(options, latest, out)
        return _train(options, out, device, checkpoints, latest, console, resume)


def _train(
    options: PretrainOptions,
    out: Path,
    device: torch.device,
    checkpoints: Checkpoints,
    latest: Path | None,
    console: Console,
    resume: bool,
) -> Summary:
    tokenizer, tokens = _prepare_corpus(options, latest, out, console)
    train = Windows(tokens.train, options.batch.seq_len)
    validation = Windows(tokens.validation, options.batch.seq_len, part="validation")
    with StopRequest() as stop:
        training = _open_training(options, latest, tokenizer, device, train, validation)
        plan = make_plan(options, training.model, _vocabulary_line(options, len(tokenizer)))
        manifest = tokens.manifest
        epochs = options.tokens / (len(train) * train.length)
        corpus = (
            f"corpus {manifest.source}: {manifest.train_tokens:,} training tokens (the run makes "
            f"{epochs:.2f} epochs), {manifest.validation_tokens:,} for validation"
        )
        for line in [*plan.lines(options), corpus]:
            console.print(line, highlight=False, soft_wrap=True)
        recorder = _open_recorder(options, training, validation, out, resume)
        _begin_folder(out, options, tokens)
        try:
            with open_display(console, training.step, options.steps) as display:
                if latest:
                    display.say(f"resumed after step {training.step}")
                outcome = run_loop(training, recorder, checkpoints, tokenizer, display, stop)
        finally:
            recorder.close()
        if stop.signal and outcome.step < options.steps:
            saved = "checkpoint saved" if outcome.step else "nothing to save"
            raise RunInterruptedError(
                stop.signal,
                f"stopped after step {outcome.step} by {stop.signal.name}, {saved}; "
                f"go on by {program_name()} pretrain --resume --out {out}",
            )
        export_model(out / "model", training.model, tokenizer)
    summary: Summary = {
        "steps": outcome.step,
        "tokens": options.tokens,
        "train_loss": _finite(outcome.train_loss),
        "validation_loss": outcome.validation_loss,
        "validation_perplexity": math.exp(min(outcome.validation_loss, 700.0)),
        "tokens_per_second": _finite(outcome.tokens_per_second),
        "recorder_share": recorder.share,
        "store": _store(options, out) if options.recorder.wanted else None,
        "recorder_stopped": recorder.stopped,
        "recorder_seconds": dict(recorder.timings),
        "recorder_left_out": list(recorder.left_out),
    }
    write_file(out / "summary.json", json.dumps(summary, indent=2).encode())
    return summary


def dry_run(options: PretrainOptions, *, as_json: bool = False) -> None:
    """Print what the run would be, in words or as one JSON object, and write nothing.

    Raises
    ------
    InputError
        When the run could not be made.
    """
    console = Console()
    open_source(options.corpus.data, options.corpus.text_field)
    given = None if options.corpus.tokenizer == TRAIN else load_tokenizer(options.corpus.tokenizer)
    vocab_size = len(given) if given else _trained_vocabulary(options)
    model = _new_model(options, vocab_size, given)
    torch.nn.Module.to(model, _device(options.machine.device))
    windows = random_windows(options, vocab_size)
    training = Training(options, model, _optimizer(options, model), windows, windows)
    plan = make_plan(options, model, _vocabulary_line(options, vocab_size))
    probe = _probe(options, windows) if options.recorder.wanted else None
    forecast = measure(options, training, probe)
    if as_json:
        figures = asdict(plan) | asdict(forecast) | {"tokens": options.tokens}
        print(json.dumps({"options": to_dict(options)} | figures))
        return
    console.print_json(json.dumps(to_dict(options)))
    lines = plan.lines(options) + forecast.lines(options)
    for line in [*lines, "nothing was written (--dry-run)"]:
        console.print(line, highlight=False, soft_wrap=True)


def _prepare_corpus(
    options: PretrainOptions, latest: Path | None, out: Path, console: Console
) -> tuple["PreTrainedTokenizerFast", TokenFiles]:
    """Tokenizer and tokens: those of the run where it has begun, else from the corpus."""
    recorded = _recorded_key(out) if latest else None
    if latest and recorded and (tokens := open_tokens(recorded)):
        return load_tokenizer(str(latest)), tokens
    corpus = options.corpus
    with console.status("reading the corpus") as status:
        source = open_source(corpus.data, corpus.text_field)
        status.update(
            "training the tokenizer" if corpus.tokenizer == TRAIN else "reading the tokenizer"
        )
        tokenizer = resolve_tokenizer(corpus.tokenizer, source, _trained_vocabulary(options))
        status.update("tokenising the corpus")
        needed = round(options.tokens / (1 - corpus.validation_fraction)) + options.batch.seq_len
        tokens = prepare_tokens(
            source,
            tokenizer,
            validation_fraction=corpus.validation_fraction,
            limit=corpus.max_tokens or default_limit(source, needed),
            progress=lambda message: status.update(f"tokenising the corpus: {message}"),
        )
    for line in tokens.manifest.skipped:
        console.print(f"left out of the corpus: {line}", highlight=False, soft_wrap=True)
    if recorded and tokens.manifest.key != recorded:
        raise InputError(
            f"the corpus {corpus.data} is no longer the one that {out} was trained on, and its "
            "tokens are not in the cache: start anew in another --out"
        )
    return tokenizer, tokens


def _open_training(
    options: PretrainOptions,
    latest: Path | None,
    tokenizer: "PreTrainedTokenizerFast",
    device: torch.device,
    train: Windows,
    validation: Windows,
) -> Training:
    model = load_model(latest) if latest else _new_model(options, len(tokenizer), tokenizer)
    torch.nn.Module.to(model, device).train()
    if options.machine.activation_checkpointing:
        _checkpoint_activations(model)
    optimizer = _optimizer(options, model)
    training = Training(options, model, optimizer, train, validation)
    if latest:
        training.loss = restore_training(latest, optimizer)
        training.step = step_of(latest)
    return training


def _open_recorder(
    options: PretrainOptions, training: Training, validation: Windows, out: Path, resume: bool
) -> Recorder | NullRecorder:
    if not options.recorder.wanted:
        return NullRecorder()
    schedule = options.recorder.schedule(options.steps)
    contents = options.recorder.contents()
    background = options.place.record_background
    return record(
        training.model,
        training.optimizer,
        _store(options, out),
        probe=_probe(options, validation),
        every=schedule.every if schedule.at is None else schedule.at,
        early=schedule.early,
        steps=options.steps,
        matrices=options.recorder.patterns,
        spectra=contents.spectra,
        sketch=contents.sketch,
        gradients=contents.gradients,
        subspaces=contents.subspaces,
        seed=options.seed,
        background=None if background == "off" else background,
        queue=options.place.record_queue,
        overhead=options.recorder.record_overhead,
        strict=options.place.record_strict,
        start_step=training.step,
        resume=resume,
        attrs={"model": options.model, "config": to_dict(options)},
    )


def _new_model(
    options: PretrainOptions, vocab_size: int, tokenizer: "PreTrainedTokenizerFast | None"
) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    config = model_config(options.model)
    config.vocab_size = vocab_size
    if options.batch.seq_len > getattr(config, "max_position_embeddings", options.batch.seq_len):
        config.max_position_embeddings = options.batch.seq_len
    if tokenizer is not None:
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
    if (config.pad_token_id or 0) >= vocab_size:  # it belonged to another tokenizer
        config.pad_token_id = None
    torch.manual_seed(options.seed)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # whatever a model's own checks raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"no causal language model of {options.model}: {reason}") from error
    _require_causal(options.model, model)
    model.train()
    return model


@torch.no_grad()
def _require_causal(name: str, model: "PreTrainedModel") -> None:
    """A token's prediction must not see what comes after it."""
    model.eval()
    tokens = torch.zeros(2, 4, dtype=torch.long)
    tokens[1, -1] = 1
    one, other = model(input_ids=tokens, use_cache=False).logits[:, 0]
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise InputError(f"no causal language model of {name}: its predictions see later tokens")


def _checkpoint_activations(model: "PreTrainedModel") -> None:
    renamed = getattr(
        model, "activation_checkpointing_enable", None
    )  # its name in later versions of 5
    (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _optimizer(options: PretrainOptions, model: torch.nn.Module) -> torch.optim.Optimizer:
    chosen = options.optimizer
    return torch.optim.AdamW(
        model.parameters(),
        lr=chosen.learning_rate,
        betas=(chosen.beta1, chosen.beta2),
        weight_decay=chosen.weight_decay,
        fused=True,
    )


def _probe(options: PretrainOptions, windows: Windows) -> torch.Tensor:
    """The first windows of the validation part, which training never sees: (windows, seq_len)."""
    count = min(options.recorder.probe_size, len(windows))
    return torch.from_numpy(windows.read(np.arange(count)))


def _require_one_process() -> None:
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise InputError("training runs in one process so far: start it without torchrun")


def _silence_library_bars() -> None:
    """Keep the bars that transformers draws for every saved shard out of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name} cannot be used here: {reason}") from error
    return device


def _trained_vocabulary(options: PretrainOptions) -> int:
    return options.corpus.vocab_size or default_vocabulary(options.model)


def _vocabulary_line(options: PretrainOptions, vocab_size: int) -> str:
    preset = default_vocabulary(options.model)
    if vocab_size == preset:
        return f"vocabulary {vocab_size:,}"
    return f"vocabulary {vocab_size:,} of the tokenizer in place of {preset:,}"


def _require_place(out: Path, resume: bool) -> None:
    if not resume and any((out / name).exists() for name in RUN_FILES):
        raise InputError(
            f"{out} holds a run already: add --resume to go on with it, remove it, or choose "
            "another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from error


def _require_parts(options: PretrainOptions, latest: Path | None, out: Path) -> None:
    """A run is gone on with only if none of its parts was taken away."""
    if latest and not (out / "pretrain.json").exists():
        raise InputError(f"{out} has lost its pretrain.json, which says what run it is: begin anew")
    store = _store(options, out)
    if options.recorder.wanted and latest and not exists(store):
        name = "its spectra.zarr" if options.recorder.store is None else f"its store {store}"
        raise InputError(f"{out} has lost {name}: put it back, or begin anew elsewhere")


def _read_json(file: Path) -> Summary | None:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _begin_folder(out: Path, options: PretrainOptions, tokens: TokenFiles) -> None:
    write_file(out / "pretrain.json", json.dumps(to_dict(options), indent=2).encode())
    write_file(out / "data.json", json.dumps(asdict(tokens.manifest), indent=2).encode())


def _recorded_key(out: Path) -> str:
    manifest = _read_json(out / "data.json")
    key = manifest.get("key") if manifest else None
    if not isinstance(key, str):
        raise InputError(f"{out / 'data.json'} does not say which tokens the run was trained on")
    return key


def _store(options: PretrainOptions, out: Path) -> str:
    return options.recorder.store or str(out / "spectra.zarr")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

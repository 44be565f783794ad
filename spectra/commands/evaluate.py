"""Measure a model: perplexity on text, accuracy on a task, memory and speed.

CHECKPOINT is a Hugging Face folder, a .gguf file, a compressed checkpoint, or a hub name.
With --data, it measures perplexity over full windows; --protocol reference is the paper's (the
first 1100 documents joined by spaces, at most 256 windows). With --task, it generates answers to
one of the six downstream tasks, and those that cannot be parsed count as wrong. No window and no
question is skipped.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from spectra.commands.options import parse
from spectra.machine.bfloat16 import is_native
from spectra.machine.console import Console
from spectra.machine.devices import AUTO, device_of
from spectra.machine.memory import peak_memory
from spectra.machine.progress import Shown
from spectra_data.errors import InputError
from spectra_data.sources import TEXT_FIELD, open_source
from spectra_data.tasks import load_task

if TYPE_CHECKING:
    from spectra.evaluation.perplexity import Perplexity, Text
    from spectra.evaluation.tasks import Accuracy
    from spectra.models.source import Source
    from spectra.store.evaluations import Evaluation


@dataclass(frozen=True)
class Options:
    """Options of `spectra evaluate`."""

    checkpoint: tyro.conf.Positional[str]
    """Checkpoint to evaluate: a folder, a .gguf file, an adapter's folder, or a hub name."""
    data: str | None = None
    """Text for perplexity: a file or folder, pydocs, c4, hf:NAME."""
    text_field: str = TEXT_FIELD
    """Field or column of --data that holds the text."""
    task: Literal["commonsenseqa", "svamp", "boolq", "coinflip", "date", "strategyqa"] | None = None
    """Downstream task, instead of --data."""
    task_data: Path = Path("data/tasks")
    """Folder that holds a folder of published files for every task."""
    protocol: Literal["plain", "reference"] = "plain"
    """Protocol of reading text. plain: documents joined by blank lines; reference: the paper's."""
    seq_len: int | None = None
    """Tokens in a window; by default as many as the model accepts, up to 4096."""
    windows: int | None = None
    """Largest number of windows or questions; by default all, 256 with --protocol reference."""
    stride: int | None = None
    """Tokens from window to window; by default a window's length. Tokens seen before are only
    context."""
    bos: Literal["tokenizer", "start", "windows", "none"] = "tokenizer"
    """Place of the beginning token. tokenizer: where the tokenizer puts it; start: once, at the
    start; windows: at the start of every window; none: nowhere."""
    tokenizer: str | None = None
    """Tokenizer to use; the checkpoint's own by default."""
    batch_size: int | None = None
    """Windows or questions in a batch; by default 4, or where blocks are read one at a time,
    windows of 2048 tokens together, and 32 questions."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = None
    """Precision to compute in; by default float32 on the CPU, the stored one on CUDA."""
    device: str | None = None
    """Device to compute on, cpu or cuda; by default cuda if available."""
    loading: Literal["auto", "whole", "blocks"] = "auto"
    """Loading of the model. blocks: each block is read when it runs, in the memory of one; whole;
    auto: whole if it fits into free memory."""
    contexts: tuple[int, ...] = ()
    """Context lengths at which to measure peak memory, too, e.g. 512 2048; none by default."""
    speed: bool = False
    """Measure the speed of prefill and decoding, too."""
    seed: int = 0
    """Seed to write with a task's result; decoding is greedy, so nothing is drawn."""
    store: str | None = None
    """Store of a scan to add the perplexity to, for the dashboard's page Path; for compressed
    checkpoints only."""
    dry_run: bool = False
    """Print what it will read, need and take, timed on samples; write nothing."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="evaluate", description=__doc__)
    _require(options)
    from spectra.evaluation.models import load_model
    from spectra.evaluation.perplexity import Perplexity
    from spectra.evaluation.resources import bytes_on_disk, memory_of, size_of, speed_of
    from spectra.models.source import Source
    from spectra.store.evaluations import add_evaluation

    source = Source(options.checkpoint)
    # accelerate's word for all devices together
    device = AUTO if options.device == AUTO else str(device_of(options.device))
    dtype = options.dtype or ("float32" if device_of(device).type == "cpu" else "auto")
    if options.dry_run:
        return _forecast(source, dtype, options)
    evaluation = None
    if options.store is not None:
        evaluation = _compressed(source, options)
    model = load_model(source, dtype, device, options.loading)
    size = size_of(model)
    started = time.perf_counter()
    parameter = next(model.parameters())
    computed = str(parameter.dtype).removeprefix("torch.")
    if computed == "bfloat16" and is_native(parameter.device) is False:
        print(
            "spectra evaluate: this device has no instructions for bfloat16: --dtype float32 needs "
            "more memory, but is faster here",
            file=sys.stderr,
        )
    result: Perplexity | Accuracy
    with Shown(Console(stderr=True)) as shown, peak_memory(parameter.device) as peak:
        result = (
            _perplexity(model, source, options, shown)
            if options.data
            else _task(model, source, options, shown)
        )
    seconds = time.perf_counter() - started
    found = _described(result, options)
    found |= {
        "parameters": size.parameters,
        "block_parameters": size.block_parameters,
        "weight_bytes": size.weight_bytes,
        "bytes_on_disk": bytes_on_disk(source),
        "dtype": computed,
        "device": str(parameter.device),
        "peak_memory_bytes": peak[0],
        "seconds": seconds,
    }
    if isinstance(result, Perplexity):
        found["tokens_per_second"] = result.windows * result.seq_len / max(result.seconds, 1e-9)
    if options.contexts:
        found["memory"] = [dataclasses.asdict(m) for m in memory_of(model, options.contexts)]
    if options.speed:
        found["speed"] = dataclasses.asdict(speed_of(model))
    failure = None
    if evaluation is not None and isinstance(result, Perplexity):
        measured = dataclasses.replace(evaluation, perplexity=result.perplexity)
        try:
            add_evaluation(options.store or "", measured)
            found["store"] = options.store
        except InputError as error:  # print first what may have taken hours
            failure = error
    if options.json:
        print(json.dumps(found))
    else:
        _print(found)
    if failure is not None:
        raise failure
    return 0


def _require(options: Options) -> None:
    """Refuse options that cannot work, before anything is loaded."""
    if (options.data is None) == (options.task is None):
        raise InputError("name either --data or --task (see `spectra evaluate --help`)")
    numbers = {"--windows": options.windows, "--seq-len": options.seq_len}
    numbers |= {"--batch-size": options.batch_size, "--stride": options.stride}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is at least 1, not {value}")
    if any(context < 1 for context in options.contexts):
        raise InputError("--contexts are lengths of at least 1")
    if options.protocol == "reference" and (options.bos != "tokenizer" or options.stride):
        raise InputError("the reference's protocol has its own stride and beginning token")
    if options.data is not None:
        open_source(options.data, options.text_field)
    elif options.text_field != TEXT_FIELD:
        raise InputError("--text-field goes with --data: leave it out")
    if options.store is not None:
        from spectra.store.destination import require_writable
        from spectra.store.location import local_path
        from spectra.store.reader import open_store

        open_store(options.store)
        if (folder := local_path(options.store)) is not None:
            require_writable(folder, folder=True)


def _perplexity(model: Any, checkpoint: "Source", options: Options, shown: Shown) -> "Perplexity":
    from spectra.evaluation.perplexity import perplexity
    from spectra.models.streamed import is_streamed

    text, seq_len, windows = _text(checkpoint, options)
    return perplexity(
        model,
        text,
        seq_len=seq_len,
        windows=windows,
        stride=options.stride,
        batch_size=options.batch_size or (max(1, 2048 // seq_len) if is_streamed(model) else 4),
        progress=lambda done, count: shown.update("windows", done, count),
    )


def _text(checkpoint: "Source", options: Options) -> "tuple[Text, int, int | None]":
    """The text, the tokens in a window, and the largest number of windows."""
    from spectra.calibration.text import tokenizer_of
    from spectra.evaluation.perplexity import REFERENCE_WINDOWS, reference_tokens, text_tokens

    tokenizer = tokenizer_of(checkpoint, options.tokenizer)
    config = checkpoint.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or 2048
    seq_len = options.seq_len or min(longest, 4096)
    if seq_len > longest:
        raise InputError(f"the model accepts {longest} tokens, not windows of {seq_len}")
    source = open_source(options.data or "", options.text_field)
    windows = options.windows
    if options.protocol == "reference":
        windows = min(windows or REFERENCE_WINDOWS, REFERENCE_WINDOWS)
        text = reference_tokens(source, tokenizer, limit=(windows + 1) * seq_len)
    else:
        limit = None if windows is None else (windows + 1) * seq_len
        text = text_tokens(source, tokenizer, bos=options.bos, limit=limit)
    return text, seq_len, windows


def _forecast(source: "Source", dtype: str, options: Options) -> int:
    from spectra.calibration.text import tokenizer_of
    from spectra.commands.forecasts import show
    from spectra.compression.sources import require_dtype
    from spectra.forecasting.evaluate import EvaluationForecaster

    if options.contexts or options.speed:
        raise InputError("--contexts and --speed are not forecast: leave them out")
    precision = source.dtype if dtype == AUTO else require_dtype(dtype)
    forecaster = EvaluationForecaster(source, precision, options.loading, options.batch_size)
    device = str(device_of(options.device))
    if options.task is None:
        text, length, windows = _text(source, options)
        count = len(text.starts(length, options.stride, windows))
        return show(forecaster.perplexity(count, length), None, options.json, device)
    examples = load_task(options.task, options.task_data)[: options.windows]
    tokenizer, some = tokenizer_of(source, options.tokenizer), examples[:: len(examples) // 16 or 1]
    tokens = sum(len(tokenizer(e.prompt)["input_ids"]) for e in some) / len(some)
    return show(forecaster.task(len(examples), tokens), None, options.json, device)


def _task(model: Any, checkpoint: "Source", options: Options, shown: Shown) -> "Accuracy":
    from spectra.calibration.text import tokenizer_of
    from spectra.evaluation.tasks import task_accuracy
    from spectra.models.streamed import is_streamed

    assert options.task is not None
    examples = load_task(options.task, options.task_data)
    return task_accuracy(
        model,
        tokenizer_of(checkpoint, options.tokenizer),
        options.task,
        examples[: options.windows],
        batch_size=options.batch_size or (32 if is_streamed(model) else 4),
        progress=lambda done, count: shown.update("questions", done, count),
    )


def _compressed(source: "Source", options: Options) -> "Evaluation":
    """The evaluation of a compressed checkpoint, complete but for its perplexity."""
    from spectra.store.evaluations import Evaluation

    if options.task is not None or not source.is_compressed:
        raise InputError("--store is for the perplexity of a compressed checkpoint")
    described = source.compressed
    rank_map = described.rank_map
    return Evaluation(
        rank_map.err,
        rank_map.budget,
        1.0,
        rank_map.method,
        str(described.compression.get("method", "")),
        rank_map.storage,
        Path(options.data or "").name,  # stores travel, folders do not
    )


def _described(result: "Perplexity | Accuracy", options: Options) -> dict[str, Any]:
    from spectra.evaluation.perplexity import Perplexity

    if isinstance(result, Perplexity):
        return {
            # JSON has no infinity
            "perplexity": result.perplexity if math.isfinite(result.perplexity) else None,
            "nll": result.nll,
            "windows": result.windows,
            "tokens": result.tokens,
            "seq_len": result.seq_len,
            "stride": result.stride,
            "bos": result.bos,
            "protocol": options.protocol,
            "data": open_source(options.data or "").name,
        }
    return {
        "task": options.task,
        "accuracy": result.accuracy,
        "accuracy_low": result.interval[0],
        "accuracy_high": result.interval[1],
        "correct": result.correct,
        "total": result.total,
        "unparsed": result.unparsed,
        "cut": result.cut,
        "seed": options.seed,
    }


def _print(found: dict[str, Any]) -> None:
    if "perplexity" in found:
        value = math.exp(min(found["nll"], 700))
        print(
            f"perplexity {value:.4g} ({found['nll']:.4f} nats a token) over "
            f"{found['windows']} windows of {found['seq_len']}, {found['tokens']:,} tokens, "
            f"beginning token: {found['bos']}, {found['protocol']} protocol"
        )
        print(f"{found['tokens_per_second']:,.0f} tokens/s")
    else:
        print(
            f"{found['task']}: accuracy {found['accuracy']:.2%} (95 % interval "
            f"{found['accuracy_low']:.1%} to {found['accuracy_high']:.1%}), {found['correct']} of "
            f"{found['total']}; {found['unparsed']} answers could not be read and count as wrong"
        )
        if found["cut"]:
            print(f"{found['cut']} prompts were longer than the model's window: their end was kept")
    disk = found["bytes_on_disk"]
    print(
        f"{found['parameters']:,} parameters, {found['block_parameters']:,} in matrices of blocks, "
        f"{found['weight_bytes'] / 1e9:.3g} GB as {found['dtype']} on {found['device']}"
        + ("" if disk is None else f", {disk / 1e9:.3g} GB on disk")
    )
    print(f"peak memory {found['peak_memory_bytes'] / 1e9:.2f} GB")
    for memory in found.get("memory", ()):
        print(
            f"context {memory['context']}: peak {memory['peak_bytes'] / 1e9:.2f} GB, of which "
            f"keys and values {memory['cache_bytes'] / 1e9:.3g} GB"
        )
    if speed := found.get("speed"):
        print(
            f"prefill {speed['prefill']:,.0f} tokens/s at {speed['context']}, decoding "
            f"{speed['decode']:,.1f} tokens/s"
        )
    if "store" in found:
        print(f"added to {found['store']}")

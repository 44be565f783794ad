"""Results of a finetuning run: accuracy on the test questions, an adapter or a checkpoint."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from spectra.compression.sources import require_dtype
from spectra.evaluation.tasks import task_accuracy
from spectra.machine.progress import Shown
from spectra.models.adapter import apply_adapter
from spectra.models.loading import load_whole
from spectra.store.weights import share
from spectra_data.tasks import Example
from spectra_pretrain.checkpoint import appearing
from spectra_pretrain.finetuning.base_model import BaseModel
from spectra_pretrain.finetuning.options import FinetuneOptions
from spectra_pretrain.loop import Training
from spectra_pretrain.session import Summary
from spectra_pretrain.trainee import Trainee


def ask(
    options: FinetuneOptions,
    base: BaseModel,
    training: Training,
    questions: Sequence[Example],
    console: Console,
) -> Summary:
    """Accuracy of the model in memory on the test questions."""
    name = options.task.task
    assert name is not None
    model = training.model.eval()
    with training.autocast(), Shown(console, "questions") as shown:
        found = task_accuracy(
            model,
            base.tokenizer,
            name,
            questions,
            batch_size=options.batch.batch_size,
            progress=lambda done, count: shown.update(f"testing on {name}", done, count),
        )
    low, high = found.interval
    return {
        "task": name,
        "accuracy": found.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "correct": found.correct,
        "total": found.total,
        "unparsed": found.unparsed,
        "cut": found.cut,
        "seed": options.seed,
    }


def write_result(
    options: FinetuneOptions, base: BaseModel, identity: str, trainee: Trainee, out: Path
) -> None:
    """Write the adapter's folder, or the whole base checkpoint with the changes in it."""
    local = Path(base.address).expanduser()
    address = str(local.resolve()) if local.exists() else base.address
    adapter = out / "adapter"
    with appearing(adapter) as folder:
        trainee.layers.save(folder, address, identity)
        base.tokenizer.save_pretrained(folder)
    if options.saving.save == "adapter":
        return
    # in float32, so that what was trained is rounded once
    fresh: Any = apply_adapter(load_whole(base.source).model, adapter)
    dtype = base.stored
    if options.saving.save_dtype != "auto":
        dtype = require_dtype(options.saving.save_dtype)
    for parameter in fresh.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    described: Any = getattr(fresh.config, "quantization_config", None)
    if hasattr(described, "compression"):
        finetuned = {"train": options.trained.train, "steps": options.steps, "seed": options.seed}
        described.compression["finetuned"] = finetuned
    if base.source.is_gguf:  # GGUF is only read, not written
        fresh.hf_quantizer = None
        fresh.config.quantization_config = None
        del fresh.config.quantization_config
    with appearing(out / "model") as folder:
        fresh.save_pretrained(folder)
        share(folder)
        base.source.copy_companions(folder)
        base.tokenizer.save_pretrained(folder)
    shutil.rmtree(adapter)

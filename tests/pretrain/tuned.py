"""Finetuning runs small enough for any test."""

import math

import torch

from spectra.models.loading import load_whole
from spectra_pretrain.finetuning.options import FinetuneOptions
from spectra_pretrain.optionfile import from_dict

SETTINGS = {
    "steps": 4,
    "seq_len": 32,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup": 0.25,
    "record_every": 0,
    "probe_size": 2,
    "sketch": 64,
    "eval_every": 2,
    "eval_tokens": 256,
    "checkpoint_every": 2,
    "device": "cpu",
    "precision": "float32",
    "save_dtype": "float32",
}
OF_METHOD = {
    "galore": {"galore_rank": 8, "galore_every": 2},
    "lora": {"lora_rank": 4},
    "dora": {"lora_rank": 4},
}


def tuned(checkpoint, data, **changes) -> FinetuneOptions:
    own = OF_METHOD.get(changes.get("train", "lrc"), {})
    given = {"checkpoint": str(checkpoint)} | ({} if "task" in changes else {"data": data})
    if changes.get("save") == "adapter":
        given["save_dtype"] = "auto"
    return from_dict(SETTINGS | own | given | changes, "test", FinetuneOptions)


def loss_of(address, validation) -> float:
    """Of a saved model, in float32, on the batches of a run's validation."""
    model = load_whole(str(address)).model.eval()
    with torch.no_grad():
        losses = [model(**batch).loss.item() for batch in validation.batches()]
    return math.fsum(losses) / len(losses)

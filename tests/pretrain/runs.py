"""Runs small enough for any test, and what makes two of them the same."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import spectra
from spectra_pretrain.checkpoint import Checkpoints
from spectra_pretrain.optionfile import from_dict
from spectra_pretrain.options import PretrainOptions

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "vocab_size": 300,
    "model_type": "llama",
}


SETTINGS = {
    "steps": 8,
    "seq_len": 32,
    "batch_size": 4,
    "record_every": 3,
    "probe_size": 2,
    "sketch": 64,
    "eval_every": 4,
    "eval_tokens": 256,
    "checkpoint_every": 3,
    "device": "cpu",
}


def options_of(inputs, **changes) -> PretrainOptions:
    return from_dict(SETTINGS | inputs | changes, "test", PretrainOptions)


def flags(inputs, **changes) -> list[str]:
    values = SETTINGS | inputs | changes
    return [part for k, v in values.items() for part in (f"--{k.replace('_', '-')}", str(v))]


def assert_same_run(one: Path, other: Path):
    """Bit for bit: weights, optimizer, random state, and every array of the store."""
    last = {path: Checkpoints(path / "checkpoints").latest() for path in (one, other)}
    first, second = (load_file(last[path] / "model.safetensors") for path in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    states = [torch.load(last[path] / "training.pt", weights_only=True) for path in (one, other)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    runs = [spectra.open(path / "spectra.zarr") for path in (one, other)]
    for group in ("spectra", "sketches", "train"):
        for name, array in runs[0][group].data_vars.items():
            if name != "tokens_per_second":
                np.testing.assert_array_equal(runs[1][group][name], array, err_msg=name)

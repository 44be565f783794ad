"""Calibration for Fisher: seconds of its passes, and of plain passes over the same windows.

Plain is a forward pass and a backward pass with gradients of all weights, as in training. Ours are
two forward passes, a backward pass without gradients of weights, and the moments of short sides,
hidden states on disk included; decompositions are apart. On the shapes of SmolLM2-135M, a few
layers of them, with windows of 512 in batches of 4.
"""

import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spectra.calibration.blocks import Blocks
from spectra.calibration.hidden import HiddenStates
from spectra.calibration.passes import Pass
from spectra.compression.block import decompose_block
from spectra.compression.methods import WEIGHING
from spectra.compression.scratch import Scratch
from spectra.compression.settings import Settings
from spectra.machine.progress import silent
from spectra.models.loading import Loaded
from tests.benchmarks.timing import seconds_once

WINDOWS, LENGTH, BATCH = 16, 512, 4
LAYERS = (4, 12)


def run() -> list[dict[str, object]]:
    """Measure models of some layers; what the layers add is a whole model's but for its head."""
    rows = [_row(layers) for layers in LAYERS]
    few, many = rows
    each = {key: many[key] - few[key] for key in ("plain", "passes")}
    rows.append(
        {
            "layers": "each more",
            **{key: value / (LAYERS[1] - LAYERS[0]) for key, value in each.items()},
        }
        | {"decompositions": float("nan"), "passes/plain": each["passes"] / each["plain"]}
    )
    return rows


def _row(layers: int) -> dict[str, object]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    windows = torch.randint(0, config.vocab_size, (WINDOWS, LENGTH))

    def plain() -> None:
        for batch in windows.split(BATCH):
            model.zero_grad(set_to_none=True)
            model(input_ids=batch, labels=batch).loss.backward()

    plain()
    row: dict[str, object] = {"layers": str(layers), "plain": seconds_once(plain)}
    model.zero_grad(set_to_none=True)
    method, settings = WEIGHING["fisher"], Settings("fisher")
    decomposing = 0.0
    with tempfile.TemporaryDirectory() as folder:
        states = HiddenStates(Path(folder))
        passing = Pass(
            Blocks(Loaded(model)),
            windows,
            lambda layer: method.wanted(*layer.weight.shape),
            states,
            lambda block: False,
            BATCH,
            0,
            silent,
        )
        scratch = Scratch({"benchmark": "calibration", "layers": layers})
        started = time.perf_counter()
        with scratch.held():
            for seen in passing.backwards():
                names = [f"{seen.name}.{layer}" for layer in seen.statistics.groups]
                decomposing += seconds_once(
                    lambda seen=seen, names=names: decompose_block(
                        seen, names, method, settings, scratch
                    )
                )
        row["passes"] = time.perf_counter() - started - decomposing
        scratch.remove()
    return row | {"decompositions": decomposing, "passes/plain": row["passes"] / row["plain"]}

"""Checkpoints of any size with the spectra of trained ones: a power-law tail on a bulk of noise.

``python -m tests.llama_shaped OUT [--model llama_7b] [--layers 32]`` writes one; LLaMA-7B takes
13.5 GB and some minutes.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from spectra_pretrain.presets import PRESETS

TAIL = 256
"""Values in the power law."""
EXPONENTS = {"q": 0.9, "k": 0.9, "v": 0.4, "o": 0.45, "gate": 0.5, "up": 0.4, "down": 0.45}
HEADS = {"q": 60, "k": 60, "v": 6, "o": 8, "gate": 14, "up": 8, "down": 8}
"""How far the largest value stands above the bulk's edge, in units of the bulk's deviation."""


def weight(rows: int, cols: int, role: str, draw: torch.Generator) -> torch.Tensor:
    """A bfloat16 weight: noise of deviation 0.02, and a tail above it."""
    noise = torch.randn(rows, cols, generator=draw)
    left = torch.randn(rows, TAIL, generator=draw) / rows**0.5
    right = torch.randn(cols, TAIL, generator=draw) / cols**0.5
    edge = rows**0.5 + cols**0.5
    values = edge * (1 + HEADS[role] * torch.arange(1, TAIL + 1) ** -EXPONENTS[role] / 10)
    return (0.02 * torch.addmm(noise, left * values, right.T)).bfloat16()


def write_checkpoint(folder: Path, model: str = "llama_7b", layers: int | None = None) -> None:
    """Write a checkpoint in Hugging Face format, a shard a layer."""
    size = PRESETS[model]
    layers = layers or size.layers
    hidden, inner, vocabulary = size.hidden, size.intermediate, 32_000
    shapes = {f"self_attn.{role}_proj": (hidden, hidden) for role in "qkvo"}
    shapes |= {f"mlp.{role}_proj": (inner, hidden) for role in ("gate", "up")}
    shapes |= {"mlp.down_proj": (hidden, inner)}
    folder.mkdir(parents=True, exist_ok=True)
    weight_map, total = {}, 0
    for number in range(layers + 1):
        draw = torch.Generator().manual_seed(number)
        file = f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"
        if number < layers:
            stem = f"model.layers.{number}"
            tensors = {
                f"{stem}.{name}.weight": weight(*shape, name.split(".")[1][:-5], draw)
                for name, shape in shapes.items()
            }
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{stem}.{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        else:
            tensors = {
                name: (0.02 * torch.randn(vocabulary, hidden, generator=draw)).bfloat16()
                for name in ("model.embed_tokens.weight", "lm_head.weight")
            } | {"model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="llama_7b", choices=PRESETS)
    parser.add_argument("--layers", type=int)
    arguments = parser.parse_args()
    write_checkpoint(arguments.out, arguments.model, arguments.layers)

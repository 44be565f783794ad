"""Checkpoints of any size that take no disk: a header, and a file of zeros that are not stored."""

import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM


def write_sparse(folder: Path, family: str, **sizes) -> Path:
    """A checkpoint in bfloat16 of a family and sizes of transformers, in one sparse file."""
    config = AutoConfig.for_model(family, dtype=torch.bfloat16, **sizes)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        begin, end = end, end + 2 * parameter.numel()
        shape = list(parameter.shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder

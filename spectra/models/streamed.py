"""A model whose blocks read their weights when they run, so that any size runs in little memory.

Everything outside the blocks (embedding, last norm, head) stays in memory, and one block at a time.
Each forward pass reads all blocks once: the more tokens it is given, the less that matters.
"""

from collections.abc import Sequence
from typing import Any

import torch

from spectra.machine.libc import trim
from spectra.models.loading import Loaded
from spectra_data.errors import InputError


def streamed(loaded: Loaded, device: str | torch.device = "cpu") -> torch.nn.Module:
    """The model of a skeleton (`load_skeleton`), ready to run: in evaluation mode, on a device.

    Its code is transformers' own, so that caches, `generate` and the like work as usual.
    """
    place = torch.device(device)
    model = loaded.model.eval().requires_grad_(False)
    path, blocks = blocks_of(model)
    put_outside(model, blocks, place)
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(_filling(loaded, f"{path}.{number}", place))
        block.register_forward_hook(_emptying, always_call=True)
    return model


def is_streamed(model: torch.nn.Module) -> bool:
    """Whether a model reads its blocks when they run."""
    return any(parameter.is_meta for parameter in model.parameters())


def _filling(loaded: Loaded, path: str, device: torch.device) -> Any:
    def fill(block: torch.nn.Module, _: Any) -> None:
        loaded.fill(block, path, device)

    return fill


def _emptying(block: torch.nn.Module, *_: Any) -> None:
    emptied(block)
    trim()


def emptied(block: torch.nn.Module) -> None:
    """Free the memory of a block's parameters; its buffers, which are small, stay."""
    for module in block.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty_like(parameter, device="meta")
            setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))


def put_outside(
    model: torch.nn.Module, blocks: Sequence[torch.nn.Module], device: torch.device
) -> None:
    """Put everything but the blocks' weights on a device: other modules, and blocks' buffers.

    Buffers that are stored with the weights are read with them.
    """
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in model.modules():
        if id(module) not in inside and not any(True for _ in module.children()):
            module.to(device)
    for block in blocks:
        for module in block.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if not buffer.is_meta:
                    module._buffers[name] = buffer.to(device)


def blocks_of(model: torch.nn.Module) -> tuple[str, Sequence[torch.nn.Module]]:
    """The list of blocks: the longest of the outermost lists of modules, with its path."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module)
    ]
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of blocks to calibrate on")
    depth = min(name.count(".") for name, _ in lists)
    outermost = [pair for pair in lists if pair[0].count(".") == depth]
    name, blocks = max(outermost, key=lambda pair: len(pair[1]))
    return name, list(blocks)

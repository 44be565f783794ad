"""What is fast on a device."""

from collections.abc import Iterator
from typing import Any

import torch

from spectra.machine import libc
from spectra_data.errors import InputError, first_line
from spectra_pretrain.options import RunOptions

SHORT = 512
"""Tokens up to which attention in bfloat16 is faster on a CPU without the fused kernel."""
BFLOAT16 = ("amx_bf16", "avx512_bf16")
"""Instructions of x86 that multiply such numbers."""


def set_attention(model: Any, options: RunOptions, device: torch.device) -> None:
    """Have a model of transformers compute attention in the way that the options name.

    Raises
    ------
    InputError
        When the model does not know it.
    """
    way = options.machine.attention
    if way == "auto":
        short = device.type == "cpu" and options.batch.seq_len <= SHORT
        if not (short and options.precision == "bfloat16"):
            return
        way = "eager"
    try:
        model.set_attn_implementation(way)
    except (ValueError, ImportError) as error:
        raise InputError(f"--attention {way}: {first_line(error)}") from error


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, let freed memory stay with the process: the next step wants it again."""
    if device.type == "cpu":
        libc.keep_freed_memory()


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass."""
    # its name in later versions of 5
    renamed = getattr(model, "activation_checkpointing_enable", None)
    (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})


def slowness(options: RunOptions, device: torch.device) -> Iterator[str]:
    """A line where the run's precision is slow on this device."""
    asked = getattr(torch.cpu, "get_capabilities", dict)  # of recent versions of torch
    told: dict[str, Any] = asked()
    known = device.type == "cpu" and told.get("architecture") == "x86_64"
    if known and options.precision == "bfloat16" and not any(told.get(n) for n in BFLOAT16):
        yield (
            "this CPU has no instructions for bfloat16: --precision float32 takes more memory, and "
            "is faster here"
        )

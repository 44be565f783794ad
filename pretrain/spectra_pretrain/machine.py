"""Settings that are fast on a device."""

from collections.abc import Iterator
from typing import Any

import torch

from spectra.machine import libc
from spectra_data.errors import InputError, first_line
from spectra_pretrain.options import RunOptions

SHORT = 512
"""Tokens up to which attention in bfloat16 is faster on a CPU without the fused kernel."""
BFLOAT16 = ("amx_bf16", "avx512_bf16")
"""x86 instructions that multiply bfloat16 numbers."""


def set_attention(model: Any, options: RunOptions, device: torch.device) -> None:
    """Set a model's implementation of attention to the one that the options name.

    Raises
    ------
    InputError
        When the model does not have it.
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
    """On a CPU, let freed memory stay with the process: the next step needs it again."""
    if device.type == "cpu":
        libc.keep_freed_memory()


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass."""
    # the name in later versions 5 of transformers
    renamed = getattr(model, "activation_checkpointing_enable", None)
    (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})


def slowness(options: RunOptions, device: torch.device) -> Iterator[str]:
    """A warning if the run's precision is slow on this device."""
    get_capabilities = getattr(torch.cpu, "get_capabilities", dict)  # in recent versions of torch
    found: dict[str, Any] = get_capabilities()
    known = device.type == "cpu" and found.get("architecture") == "x86_64"
    if known and options.precision == "bfloat16" and not any(found.get(n) for n in BFLOAT16):
        yield (
            "this CPU has no instructions for bfloat16: --precision float32 needs more memory, but "
            "is faster here"
        )

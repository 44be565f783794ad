"""What a run asks of the machine: its device, and what is fast there."""

import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import torch

from spectra_data.errors import InputError
from spectra_pretrain.options import RunOptions

SHORT = 512
"""Tokens up to which attention in bfloat16 is faster on a CPU without the fused kernel."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h."""
BFLOAT16 = ("amx_bf16", "avx512_bf16")
"""Instructions of x86 that multiply such numbers."""


def device_of(name: str) -> torch.device:
    """The device that an option names.

    Raises
    ------
    InputError
        When it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name} cannot be used here: {reason}") from error
    return device


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
        raise InputError(f"--attention {way}: {str(error).splitlines()[0]}") from error


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, let freed memory stay with the process: the next step wants it again.

    Otherwise glibc hands large tensors back to the system, which clears every page anew.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


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

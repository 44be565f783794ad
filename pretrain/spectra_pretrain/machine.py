"""Settings that are fast on a device."""

import dataclasses
from typing import Any, Literal, TypeVar

import torch

from spectra.machine import libc
from spectra.machine.bfloat16 import is_native
from spectra_data.errors import InputError, first_line
from spectra_pretrain.options import AUTO, RunOptions

Run = TypeVar("Run", bound=RunOptions)

SHORT = 512
"""Tokens up to which attention in bfloat16 is faster on a CPU without the fused kernel."""


def chosen(options: Run, device: torch.device) -> Run:
    """Options with the precision that suits a device, if they leave it open (``auto``)."""
    if options.precision != AUTO:
        return options
    short = options.trained.masters == "bfloat16"
    return dataclasses.replace(options, precision="bfloat16" if short else suited(device))


def suited(device: torch.device) -> Literal["bfloat16", "float32"]:
    """The precision to compute in on a device: bfloat16 if it has instructions for it."""
    return "bfloat16" if is_native(device) else "float32"


def precision_line(options: RunOptions, device: torch.device) -> str:
    """The precision in words, with a warning if it is slow on this device."""
    line = f"computes in {options.precision}"
    if is_native(device) is not False:
        return line
    what = "CPU" if device.type == "cpu" else "GPU"
    if not options.reduced:
        return f"{line}: this {what} has no instructions for bfloat16"
    without = " without --masters bfloat16" if options.trained.masters == "bfloat16" else ""
    return (
        f"{line}, for which this {what} has no instructions: --precision float32{without} needs "
        "more memory, but is faster here"
    )


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
        if not (short and options.reduced):
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

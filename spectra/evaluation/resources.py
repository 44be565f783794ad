"""Resources of a model: parameters, bytes, memory by context length, tokens per second."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spectra.checkpoint.adapter import FILE
from spectra.checkpoint.checkpoint import ADAPTER
from spectra.machine.memory import peak_memory
from spectra.matrices import find_matrices, stored_parameters
from spectra.models.inputs import running
from spectra.models.source import Source


@dataclass(frozen=True)
class Size:
    """Parameters and bytes of a model in memory."""

    parameters: int
    block_parameters: int
    """Parameters of the matrices in the blocks; of their factors if they are low-rank."""
    weight_bytes: int


@dataclass(frozen=True)
class Memory:
    """Peak memory of one forward pass over a context, with what the process holds anyway."""

    context: int
    peak_bytes: int
    """Bytes resident at the peak (CPU) or allocated (CUDA), weights included."""
    cache_bytes: int
    """Bytes of keys and values at that length."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second, as medians of several runs."""

    prefill: float
    decode: float
    context: int
    new_tokens: int
    batch_size: int


def size_of(model: torch.nn.Module) -> Size:
    """Count a model's parameters; tied ones once."""
    counted = dict(model.named_parameters())
    matrices = find_matrices(model)[0]
    return Size(
        sum(p.numel() for p in counted.values()),
        stored_parameters(matrices.values()),
        sum(p.numel() * p.element_size() for p in counted.values()),
    )


@torch.no_grad()
def memory_of(model: torch.nn.Module, contexts: Sequence[int]) -> list[Memory]:
    """Peak memory by context length, with the cache of keys and values kept, as in Table 3."""
    device = next(model.parameters()).device
    found = []
    for context in contexts:
        tokens = torch.zeros(1, context, dtype=torch.long, device=device)
        with running(model, tokens), peak_memory(device) as peak:
            out = model(input_ids=tokens, use_cache=True, logits_to_keep=1)
        cache = _cache_bytes(out.past_key_values)
        found.append(Memory(context, peak[0], cache))
        del out
    return found


@torch.no_grad()
def speed_of(
    model: torch.nn.Module,
    *,
    context: int = 512,
    new_tokens: int = 32,
    batch_size: int = 1,
    repeats: int = 3,
) -> Speed:
    """Tokens per second while a context is read, and while tokens are added one by one."""
    device = next(model.parameters()).device
    tokens = torch.zeros(batch_size, context, dtype=torch.long, device=device)
    prefill, decode = [], []
    for _ in range(repeats + 1):  # the first is a warm-up
        _wait(device)
        begin = time.perf_counter()
        with running(model, tokens):
            out = model(input_ids=tokens, use_cache=True, logits_to_keep=1)
        _wait(device)
        middle = time.perf_counter()
        cache, last = out.past_key_values, tokens[:, -1:]
        for _ in range(new_tokens):
            out = model(input_ids=last, past_key_values=cache, use_cache=True)
            cache, last = out.past_key_values, out.logits[:, -1:].argmax(dim=-1)
        _wait(device)
        prefill.append(batch_size * context / (middle - begin))
        decode.append(batch_size * new_tokens / (time.perf_counter() - middle))
    return Speed(
        statistics.median(prefill[1:]),
        statistics.median(decode[1:]),
        context,
        new_tokens,
        batch_size,
    )


def bytes_on_disk(named: str | Path | Source) -> int | None:
    """Bytes of a checkpoint's weight files; None if it is not on this machine."""
    source = Source.of(named)
    place = Path(source.address)
    if not place.exists():
        return None
    if any((place / name).is_file() for name in (FILE, ADAPTER)):  # its base is stored elsewhere
        return sum(file.stat().st_size for file in place.glob("*.safetensors"))
    return sum(int(size) for size, *_ in source.checkpoint.files.values())


def _cache_bytes(cache: object) -> int:
    total = 0
    for layer in getattr(cache, "layers", ()):
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if isinstance(tensor, torch.Tensor):
                total += tensor.numel() * tensor.element_size()
    return total


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

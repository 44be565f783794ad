"""Arithmetic in bfloat16: on a device without instructions for it, it is slower than float32."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
"""Instructions of x86 and ARM that multiply bfloat16 numbers, by torch's names."""


def is_native(device: "torch.device") -> bool | None:
    """Whether a device has instructions for bfloat16, and torch uses them; None if unknown."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    get_capabilities = getattr(torch.cpu, "get_capabilities", dict)  # in recent versions of torch
    found: dict[str, Any] = get_capabilities()
    if device.type != "cpu" or not found:
        return None
    has_kernels: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_kernels and any(found.get(name) for name in INSTRUCTIONS)

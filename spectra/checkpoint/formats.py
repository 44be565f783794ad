"""The formats of weight files, by the suffix of the file's name, the safest first."""

from collections.abc import Callable

from spectra.checkpoint.folder import RangedFile
from spectra.checkpoint.tensors import TensorFile
from spectra.registry import Entry, Registry

_TORCH = Entry("torch's archives, never executed", "spectra.checkpoint.torch_file:TorchFile")
FORMATS: Registry[Callable[[RangedFile], TensorFile]] = Registry(
    "format of weights",
    {
        ".safetensors": Entry("safetensors", "spectra.checkpoint.safetensors_file:SafetensorsFile"),
        ".metadata": Entry(
            "torch.distributed's, with its .distcp files",
            "spectra.checkpoint.distributed_file:DistributedFile",
        ),
        ".bin": _TORCH,
        ".pt": _TORCH,
        ".pth": _TORCH,
        ".ckpt": _TORCH,
        ".gguf": Entry("llama.cpp's", "spectra.checkpoint.gguf_file:GgufFile"),
    },
)

PIECE = ".distcp"
"""Suffix of files that hold pieces of tensors, as the ``.metadata`` of their folder says."""


def suffix_of(name: str) -> str | None:
    """The suffix of a name that marks its format; None if it has no known suffix."""
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)

"""The formats of weight files, by the suffix of the file's name, the safest first."""

from collections.abc import Callable

from spectra.checkpoint.folder import RangedFile
from spectra.checkpoint.tensors import TensorFile
from spectra.registry import Entry, Registry

INDEX = ".metadata"
"""Whole name of the file in which torch.distributed describes the others of its folder."""
PIECE = ".distcp"
"""Suffix of these others, which hold pieces of tensors."""
_TORCH = Entry("torch's archives, never executed", "spectra.checkpoint.torch_file:TorchFile")
FORMATS: Registry[Callable[[RangedFile], TensorFile]] = Registry(
    "format of weights",
    {
        ".safetensors": Entry("safetensors", "spectra.checkpoint.safetensors_file:SafetensorsFile"),
        INDEX: Entry(
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


def suffix_of(name: str) -> str | None:
    """The suffix of a name that marks its format; None if it has no known suffix."""
    last = name.rpartition("/")[2]
    if last.endswith(INDEX):  # hub clients write notes like model.safetensors.metadata
        return INDEX if last == INDEX else None
    return next((suffix for suffix in FORMATS if last.endswith(suffix)), None)

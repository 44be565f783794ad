"""The precision of parameters."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from spectra_pretrain.options import RunOptions


def set_precision(model: torch.nn.Module, options: "RunOptions") -> None:
    """Turn trained parameters into masters, frozen ones into the run's precision; buffers stay.

    Frozen vectors, e.g. of norms, are float32: they are small, and are combined with float32.
    """
    frozen = torch.bfloat16 if options.reduced else torch.float32
    masters = torch.bfloat16 if options.trained.masters == "bfloat16" else torch.float32
    for parameter in model.parameters():
        if parameter.is_floating_point():
            alone = frozen if parameter.ndim > 1 else torch.float32
            dtype = masters if parameter.requires_grad else alone
            parameter.data = parameter.data.to(dtype)

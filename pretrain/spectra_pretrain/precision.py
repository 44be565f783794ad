"""The numbers that parameters are held in."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from spectra_pretrain.options import RunOptions


def set_precision(model: torch.nn.Module, options: "RunOptions") -> None:
    """Trained parameters as masters, frozen ones in the precision of the run; buffers stay.

    Frozen vectors, of norms say, are float32: they are small, and meet float32.
    """
    frozen = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    masters = torch.bfloat16 if options.trained.masters == "bfloat16" else torch.float32
    for parameter in model.parameters():
        if parameter.is_floating_point():
            alone = frozen if parameter.ndim > 1 else torch.float32
            dtype = masters if parameter.requires_grad else alone
            parameter.data = parameter.data.to(dtype)

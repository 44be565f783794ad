"""AdamW: torch's fused one; for bfloat16 weights, the one that rounds updates at random."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from spectra_pretrain.optimizers.registry import OptimizerKind
from spectra_pretrain.optimizers.stochastic import StochasticAdamW

if TYPE_CHECKING:
    from spectra_pretrain.ways import OptimizerOptions


def build(
    taken: Sequence[torch.nn.Parameter],
    rest: Sequence[torch.nn.Parameter],
    common: "OptimizerOptions",
    settings: Any,
) -> torch.optim.Optimizer:
    """AdamW over all parameters."""
    parameters = [*taken, *rest]
    if any(p.dtype == torch.bfloat16 for p in parameters):
        return StochasticAdamW(parameters, **common.adamw)
    return torch.optim.AdamW(parameters, **common.adamw, fused=True)


def state_bytes(parameter: torch.Tensor, settings: Any, taken: bool) -> int:
    """Two moments in float32."""
    return 2 * 4 * parameter.numel()


ADAMW = OptimizerKind(build, state_bytes, masters=("float32", "bfloat16"))

"""AdamW on bfloat16 weights whose updates are rounded at random, so that small ones are not lost.

An update that is smaller than half the spacing of bfloat16 numbers, about 0.4 % of the weight,
rounds away to nothing. Rounded up or down at random, with probabilities by its distance from the
two neighbours, it is kept on average. Source: Gupta et al. 2015, "Deep Learning with Limited
Numerical Precision".
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

from spectra_pretrain.optimizers.parameterwise import ParameterwiseOptimizer


class StochasticAdamW(ParameterwiseOptimizer):
    """AdamW, computed in float32 with float32 moments; weights and gradients are bfloat16.

    The random numbers are torch's, so that a run that restores the random state resumes bit for
    bit. Parameters of other dtypes are updated as by AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state without rounding its moments to the weights' dtype, as torch would."""
        super().load_state_dict(state_dict)
        saved = state_dict["state"]
        numbers = (i for group in state_dict["param_groups"] for i in group["params"])
        own = (p for group in self.param_groups for p in group["params"])
        for number, p in zip(numbers, own, strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                if number in saved:
                    self.state[p][name] = saved[number][name].to(p.device, copy=True)

    def update(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        """See `ParameterwiseOptimizer`."""
        assert p.grad is not None
        state, gradient = self.state[p], p.grad.float()
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(gradient)
            state["exp_avg_sq"] = torch.zeros_like(gradient)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction1 = 1 - beta1 ** state["step"]
        correction2 = 1 - beta2 ** state["step"]
        weight = p.float() if p.dtype != torch.float32 else p
        weight = weight * (1 - group["lr"] * group["weight_decay"])
        denominator = second.sqrt().div_(math.sqrt(correction2)).add_(group["eps"])
        weight.addcdiv_(first, denominator, value=-group["lr"] / correction1)
        p.copy_(rounded_at_random(weight) if p.dtype == torch.bfloat16 else weight)


def rounded_at_random(x: torch.Tensor) -> torch.Tensor:
    """Round float32 to bfloat16: to one of the two neighbours, on average to the number itself.

    A bfloat16 is the upper half of a float32: a random number is added to the lower half, which is
    then cut off. Values that are not finite do not change.
    """
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint(1 << 16, bits.shape, dtype=torch.int32, device=x.device)
    moved = ((bits + noise) & -65536).view(torch.float32)
    return torch.where(torch.isfinite(x), moved, x).to(torch.bfloat16)

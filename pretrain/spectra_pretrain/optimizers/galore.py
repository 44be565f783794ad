"""GaLore: Adam in a subspace of the gradient that is chosen anew every so many steps.

Source: Zhao et al. 2024, "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection";
step by step what the package `galore-torch` does, whose Adam has its epsilon outside of the bias
correction. The state holds tensors and numbers only.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

from spectra_pretrain.optimizers.parameterwise import ParameterwiseOptimizer

OVERSAMPLING = 8
POWER_ITERATIONS = 2


class GaLoreAdamW(ParameterwiseOptimizer):
    """AdamW whose groups with a ``rank`` see their gradients projected.

    Parameters
    ----------
    params
        Groups; of those with ``rank``, matrices whose smaller side is larger are projected. They
        may have ``every`` (steps between projections), ``scale`` and ``randomized``.
    lr, betas, eps, weight_decay
        As of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "rank": None,
            "every": 200,
            "scale": 0.25,
            "randomized": False,
        }
        super().__init__(params, defaults)

    def update(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        """See `ParameterwiseOptimizer`."""
        state, gradient = self.state[p], p.grad
        assert gradient is not None
        done = state.get("step", 0)
        projected = is_projected(p, group["rank"])
        if projected:
            if done % group["every"] == 0:
                state["basis"] = basis_of(gradient, group["rank"], group["randomized"])
            gradient = project(gradient, state["basis"])
        if not done:
            state["exp_avg"] = torch.zeros_like(gradient)
            state["exp_avg_sq"] = torch.zeros_like(gradient)
        state["step"] = done + 1
        beta1, beta2 = group["betas"]
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.mul_(beta1).add_(gradient, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        rate = group["lr"] * math.sqrt(1 - beta2 ** (done + 1)) / (1 - beta1 ** (done + 1))
        direction = first / second.sqrt().add_(group["eps"])
        if projected:
            direction = project_back(direction, state["basis"], p.shape) * group["scale"]
        p.add_(direction, alpha=-rate)
        if group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])


def is_projected(parameter: torch.Tensor, rank: int | None) -> bool:
    """Whether a parameter's gradients are projected to a rank."""
    return rank is not None and parameter.ndim == 2 and min(parameter.shape) > rank


def basis_of(gradient: torch.Tensor, rank: int, randomized: bool = False) -> torch.Tensor:
    """Leading singular vectors of a gradient on its smaller side.

    Parameters
    ----------
    gradient
        (rows, cols).
    rank
        How many.
    randomized
        By subspace iteration from a random start, instead of the whole SVD.

    Returns
    -------
    (rank, cols) orthonormal rows where rows >= cols, else (rows, rank) orthonormal columns.
    """
    tall = gradient.shape[0] >= gradient.shape[1]
    matrix = gradient.float()
    if not randomized:
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        basis = right[:rank] if tall else left[:, :rank]
    else:
        width = min(rank + OVERSAMPLING, *gradient.shape)
        left, _, other = torch.svd_lowrank(matrix, width, niter=POWER_ITERATIONS)
        basis = other[:, :rank].mT if tall else left[:, :rank]
    found: torch.Tensor = basis.to(gradient.dtype).contiguous()
    return found


def project(gradient: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """(rows, rank) where rows >= cols, else (rank, cols)."""
    tall = gradient.shape[0] >= gradient.shape[1]
    return gradient @ basis.mT if tall else basis.mT @ gradient


def project_back(direction: torch.Tensor, basis: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """(rows, cols)."""
    return direction @ basis if shape[0] >= shape[1] else basis @ direction


def state_bytes(parameter: torch.Tensor, rank: int | None) -> int:
    """Bytes of a parameter's optimizer state: two moments, and the basis where it is projected."""
    size = parameter.element_size()
    if rank is None or not is_projected(parameter, rank):
        return 2 * size * parameter.numel()
    least, most = sorted(parameter.shape)
    return size * (2 * rank * most + rank * least)

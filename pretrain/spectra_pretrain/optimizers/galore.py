"""GaLore: Adam in a subspace of the gradient that is chosen again every so many steps.

Source: Zhao et al. 2024, "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection".
It follows the package `galore-torch` step by step, whose Adam has its epsilon outside of the bias
correction. The state holds only tensors and numbers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from spectra_pretrain.optimizers.parameterwise import ParameterwiseOptimizer
from spectra_pretrain.optimizers.registry import OptimizerKind
from spectra_pretrain.settings import Check, Settings

if TYPE_CHECKING:
    from spectra_pretrain.ways import OptimizerOptions

OVERSAMPLING = 8
POWER_ITERATIONS = 2


class GaLoreAdamW(ParameterwiseOptimizer):
    """AdamW whose groups with a ``rank`` see their gradients projected.

    Parameters
    ----------
    params
        Groups. In those with ``rank``, matrices whose smaller side is larger are projected; they
        may have ``every`` (steps between projections), ``scale`` and ``randomized``.
    lr, betas, eps, weight_decay
        As in AdamW.
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
        Number of vectors.
    randomized
        Whether to use subspace iteration from a random start instead of the full SVD.

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
    """The gradient in the basis: (rows, rank) where rows >= cols, else (rank, cols)."""
    tall = gradient.shape[0] >= gradient.shape[1]
    return gradient @ basis.mT if tall else basis.mT @ gradient


def project_back(direction: torch.Tensor, basis: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The direction as a matrix of the original shape: (rows, cols)."""
    return direction @ basis if shape[0] >= shape[1] else basis @ direction


@dataclass(frozen=True)
class GaLoreSettings(Settings):
    """Options of GaLore alone."""

    galore_rank: int = 128
    """Rank to which gradients are projected, unless a side of the matrix is no larger."""
    galore_every: int = 200
    """Steps between new projections."""
    galore_scale: float = 0.25
    """Scale of projected updates."""
    galore_projection: Literal["exact", "randomized"] = "exact"
    """Computation of the gradient's leading singular vectors: a full SVD, or a randomized one."""

    def checks(self) -> list[Check]:
        """See `Settings`."""
        counts = {"--galore-rank": self.galore_rank, "--galore-every": self.galore_every}
        return [
            *((v < 1, f"{name} is at least 1, not {v}") for name, v in counts.items()),
            (not self.galore_scale > 0, f"--galore-scale is above 0, not {self.galore_scale}"),
        ]


def build(
    taken: Sequence[torch.nn.Parameter],
    rest: Sequence[torch.nn.Parameter],
    common: "OptimizerOptions",
    settings: GaLoreSettings,
) -> GaLoreAdamW:
    """GaLore over projected and other parameters, each in a group."""
    own = {
        "rank": settings.galore_rank,
        "every": settings.galore_every,
        "scale": settings.galore_scale,
        "randomized": settings.galore_projection == "randomized",
    }
    groups: list[dict[str, Any]] = [{"params": list(taken), **own}, {"params": list(rest)}]
    return GaLoreAdamW([group for group in groups if group["params"]], **common.adamw)


def state_bytes(parameter: torch.Tensor, settings: GaLoreSettings, taken: bool) -> int:
    """Two moments, and the basis if gradients are projected."""
    size = parameter.element_size()
    if not taken:
        return 2 * size * parameter.numel()
    least, most = sorted(parameter.shape)
    return size * (2 * settings.galore_rank * most + settings.galore_rank * least)


GALORE = OptimizerKind(
    build,
    state_bytes,
    takes=lambda parameter, settings: is_projected(parameter, settings.galore_rank),
    settings=GaLoreSettings,
)

"""The base class of optimizers that update one parameter after another."""

from collections.abc import Callable
from typing import Any, overload

import torch


class ParameterwiseOptimizer(torch.optim.Optimizer):
    """Calls `update` for every parameter that has a gradient."""

    def update(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        """Update a parameter in place."""
        raise NotImplementedError

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, group)
        return loss

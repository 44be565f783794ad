"""Several optimizers as one: each steps its own parameters, e.g. Muon matrices, AdamW others."""

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch


class CombinedOptimizer(torch.optim.Optimizer):
    """Optimizers that step together.

    Its groups are theirs, the very same dictionaries: a schedule that changes one changes the
    other. Step hooks are called once, before the first steps and after the last.

    Parameters
    ----------
    optimizers
        Optimizers that share no parameters.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for one in optimizers for group in one.param_groups], {})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of all optimizers, in order."""
        return {"optimizers": [one.state_dict() for one in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for one, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            one.load_state_dict(state)
        self.param_groups = [group for one in self.optimizers for group in one.param_groups]

"""How much gradients are clipped, although clipping comes before the step hooks.

`torch.nn.utils.clip_grad_norm_` (and with it Accelerate, the Trainer and most loops) passes the
norm and its limit to one function of torch. While a recorder is attached, that function is wrapped:
it works as before, and its arguments are noted. A loop that clips by other means passes the norm
before clipping to `Recorder.log`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch.nn.utils import clip_grad

from spectra.matrices import full_tensor


@dataclass(frozen=True)
class Call:
    """One call that clipped: which parameters, their gradients' norm before, and the limit."""

    parameters: frozenset[int]
    norm: torch.Tensor
    limit: float


@dataclass(frozen=True)
class Clipping:
    """All calls that clipped the gradients of one step; numbers are read only on access."""

    calls: tuple[Call, ...] = ()

    @property
    def norm(self) -> float:
        """Norm of the gradients before anything clipped them; NaN if nothing did."""
        return self._resolve(self.calls)[0]

    @property
    def factor(self) -> float:
        """Factor by which clipping scaled the gradients; NaN if nothing clipped them."""
        return self._resolve(self.calls)[1]

    def factor_of(self, parameter: torch.Tensor) -> float:
        """The factor for one parameter; 1 if nothing clipped it."""
        calls = tuple(call for call in self.calls if id(parameter) in call.parameters)
        return self._resolve(calls)[1] if calls else 1.0

    def _resolve(self, calls: tuple[Call, ...]) -> tuple[float, float]:
        """Norm and factor over all groups that were clipped separately."""
        groups: dict[frozenset[int], list[Call]] = {}
        for call in calls:
            groups.setdefault(call.parameters, []).append(call)
        each = [self._resolve_group(group) for group in groups.values()]
        if not each:
            return math.nan, math.nan
        norm = math.sqrt(sum(n * n for n, _ in each))
        factors = [factor for _, factor in each]
        return norm, factors[0] if len(set(factors)) == 1 else math.nan

    def _resolve_group(self, calls: list[Call]) -> tuple[float, float]:
        norm = factor = math.nan
        for call in calls:
            now = float(call.norm)
            clipped = min(1.0, call.limit / (now + 1e-6))
            if math.isclose(now, norm * factor, rel_tol=1e-3):
                factor *= clipped  # a second call on the result of the first
            else:
                norm, factor = now, clipped  # the calls before were of a step that was not made
        return norm, factor


class ClippingWatch:
    """Notes the calls that clip any of some parameters."""

    _watches: ClassVar["WeakSet[ClippingWatch]"] = WeakSet()
    _original: ClassVar[Any] = None

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._parameters = {id(p) for p in parameters}
        self._calls: list[Call] = []

    def open(self) -> None:
        """Start watching."""
        if not self._watches:
            _wrap()
        self._watches.add(self)

    def close(self) -> None:
        """Stop watching; the last watch restores torch's function."""
        self._watches.discard(self)
        if not self._watches:
            _unwrap()

    def take(self) -> Clipping:
        """The calls noted since the last `take`."""
        calls, self._calls = self._calls, []
        return Clipping(tuple(calls))

    def note(self, parameters: list[torch.Tensor], norm: torch.Tensor, limit: float) -> None:
        """Note a call if it clips a watched parameter."""
        watched = self._parameters.intersection(map(id, parameters))
        if watched:
            # for sharded gradients: every process is here now, and perhaps not later
            whole = full_tensor(norm.detach())
            self._calls.append(Call(frozenset(watched), whole, float(limit)))


_NAME = "_clip_grads_with_norm_"


def _wrap() -> None:
    original = getattr(clip_grad, _NAME, None)
    if original is None:  # another version of torch: the loop can still pass the norm to `log`
        return

    def clip_grads_with_norm_(
        parameters: Any, max_norm: float, total_norm: torch.Tensor, *args: Any, **kwargs: Any
    ) -> None:
        parameters = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        original(parameters, max_norm, total_norm, *args, **kwargs)
        for watch in list(ClippingWatch._watches):
            watch.note(parameters, total_norm, max_norm)

    ClippingWatch._original = original
    setattr(clip_grad, _NAME, clip_grads_with_norm_)
    torch.nn.utils.clip_grads_with_norm_ = clip_grads_with_norm_


def _unwrap() -> None:
    if ClippingWatch._original is not None:
        setattr(clip_grad, _NAME, ClippingWatch._original)
        torch.nn.utils.clip_grads_with_norm_ = ClippingWatch._original
        ClippingWatch._original = None

"""The processes of a training run: what each of them records, and how they stay together.

Every process calls the recorder at the same steps. Each measures its own matrices, so that the work
of decomposition is divided; the first one writes. An error in one of them stops the recorder in
all, so that none waits for the others forever.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from spectra.matrices import Matrix, Weight, full_tensor, is_sharded
from spectra_data.errors import InputError

T = TypeVar("T")
HANDSHAKE_SECONDS = 60.0


class Processes:
    """One process: nothing to divide, nobody to wait for."""

    rank = 0
    count = 1

    def own(self, matrices: Sequence[Matrix]) -> list[int]:
        """Numbers of the matrices that this process measures: about equal work for each process."""
        costs = sorted(((_cost(m), i) for i, m in enumerate(matrices)), reverse=True)
        loads = [0.0] * self.count
        own = []
        for cost, i in costs:
            lightest = loads.index(min(loads))
            loads[lightest] += cost
            if lightest == self.rank:
                own.append(i)
        return sorted(own)

    def gather(self, share: T) -> list[T]:
        """The shares of all processes, in the first one; nothing in the others."""
        return [share]

    def agree(self, error: str | None) -> str | None:
        """The first error that any process has; the same answer in all of them."""
        return error

    def same(self, value: T) -> T:
        """The first process's value, in all of them."""
        return value

    def sum_(self, tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Sums of tensors over all processes, in place; None if no process has one.

        Sharded tensors are unchanged: they already belong to all processes.
        """
        return list(tensors)

    def close(self) -> None:
        """End the communication with the others."""


class ProcessGroup(Processes):
    """The processes of `torch.distributed`."""

    _made: ClassVar[int] = 0

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        ProcessGroup._made += 1
        meeting = PrefixStore(f"spectra/{self._made}", _get_default_store())
        meeting.set(str(self.rank), "here")
        try:
            everyone = [str(rank) for rank in range(self.count)]
            meeting.wait(everyone, timedelta(seconds=HANDSHAKE_SECONDS))
        except RuntimeError as error:
            raise InputError(
                f"only some of the {self.count} processes record: call spectra.record in all of "
                "them, it divides the work"
            ) from error
        # a group of its own, on the CPU: small messages do not wait in the queue of a GPU
        self._group = dist.new_group(backend="gloo")

    def gather(self, share: T) -> list[T]:
        shares: list[Any] | None = [None] * self.count if self.rank == 0 else None
        dist.gather_object(share, shares, dst=0, group=self._group)
        return shares or []

    def agree(self, error: str | None) -> str | None:
        errors: list[Any] = [None] * self.count
        dist.all_gather_object(errors, error, group=self._group)
        return next((e for e in errors if e is not None), None)

    def same(self, value: T) -> T:
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]  # type: ignore[no-any-return]

    def sum_(self, tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        if any(t is not None and is_sharded(t) for t in tensors):
            return list(tensors)
        everywhere: list[Any] = [None] * self.count
        shapes = [None if t is None else (t.shape, t.dtype, t.device.type) for t in tensors]
        dist.all_gather_object(everywhere, shapes, group=self._group)
        summed: list[torch.Tensor | None] = []
        for i, tensor in enumerate(tensors):
            known = next((s[i] for s in everywhere if s[i] is not None), None)
            if known is None:
                summed.append(None)
                continue
            shape, dtype, device = known
            mine = torch.zeros(shape, dtype=dtype, device=device) if tensor is None else tensor
            dist.all_reduce(mine)
            summed.append(mine)
        return summed

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group(self._group)


def processes_of_training() -> Processes:
    """The processes that train together: those of `torch.distributed`, if it is running."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ProcessGroup()
    return Processes()


def whole_matrices(
    weights: Sequence[Weight],
    own: Sequence[int],
    tensors: Mapping[int, torch.Tensor | None],
) -> list[torch.Tensor | None]:
    """The matrices of this process, from tensors shaped like their parameters.

    Sharded tensors are gathered one after the other: every process must call this, and holds one
    whole tensor at a time in addition to its own matrices.

    Parameters
    ----------
    weights
        Weights of all matrices.
    own
        Numbers of the matrices wanted, ascending.
    tensors
        Tensors by the identity of the parameter; None if one is missing.
    """
    matrices: dict[int, torch.Tensor | None] = {}
    by_parameter: dict[int, list[int]] = {}
    for number, weight in enumerate(weights):
        by_parameter.setdefault(id(weight.parameter), []).append(number)
    wanted = set(own)
    for parameter, numbers in by_parameter.items():
        tensor = tensors[parameter]
        tensor = None if tensor is None else full_tensor(tensor)
        for number in numbers:
            if number in wanted:
                matrices[number] = None if tensor is None else weights[number].of(tensor)
    return [matrices[number] for number in own]


def _cost(matrix: Matrix) -> float:
    """Cost of a decomposition, in arbitrary units: the product and the reduction."""
    least, most = sorted((matrix.rows, matrix.cols))
    return float(least) ** 2 * (most + 2 * least)

"""The optimizer of a run, from its options and the trained parameters."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from spectra_pretrain.optimizers.combined import CombinedOptimizer
from spectra_pretrain.optimizers.registry import OPTIMIZERS, OptimizerKind

if TYPE_CHECKING:
    from spectra_pretrain.options import RunOptions


def optimizer_of(
    options: "RunOptions", parameters: Sequence[torch.nn.Parameter], matrices: Collection[int]
) -> torch.optim.Optimizer:
    """The optimizer that the options name.

    Parameters
    ----------
    options
        Options of the run.
    parameters
        All trained parameters.
    matrices
        Identities of those that an optimizer may take: matrices of blocks, and factors of adapters.
    """
    kind, settings = OPTIMIZERS[options.optimizer.optimizer], options.optimizer_settings
    taken = [p for p in parameters if id(p) in matrices and kind.takes(p, settings)]
    identities = set(map(id, taken))
    rest = [p for p in parameters if id(p) not in identities]
    if kind.rest is None:
        return kind.build(taken, rest, options.optimizer, settings)
    other = OPTIMIZERS[kind.rest]
    made = []
    if taken:
        made.append(kind.build(taken, [], options.optimizer, settings))
    if rest:
        made.append(other.build([], rest, options.optimizer, other.settings()))
    return made[0] if len(made) == 1 else CombinedOptimizer(made)


def state_bytes(options: "RunOptions", parameter: torch.Tensor, *, is_matrix: bool) -> int:
    """Bytes that the run's optimizer holds for a parameter."""
    kind, settings = OPTIMIZERS[options.optimizer.optimizer], options.optimizer_settings
    taken = is_matrix and kind.takes(parameter, settings)
    if taken or kind.rest is None:
        return kind.state_bytes(parameter, settings, taken)
    other: OptimizerKind = OPTIMIZERS[kind.rest]
    return other.state_bytes(parameter, other.settings(), False)

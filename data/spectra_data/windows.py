"""Fixed-length token windows, and the order in which training sees them.

Windows are packed: consecutive, disjoint stretches of the token file, so that every token is used
once an epoch and none is padding; documents run into each other with an end token between them. The
windows of a step are a pure function of (seed, step, rank): nothing has to be saved to resume, and
any number of ranks sees the same global batch.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spectra_data.errors import InputError
from spectra_data.tokens import Tokens


@dataclass(frozen=True)
class Windows:
    """Disjoint windows of `length` tokens."""

    tokens: Tokens
    length: int
    part: str = "training"

    def __post_init__(self) -> None:
        if self.tokens.size < self.length:
            raise InputError(
                f"the {self.part} part of the corpus has {self.tokens.size:,} tokens, fewer than "
                f"one window of {self.length}: use more text, a shorter --seq-len, or another "
                "--validation-fraction"
            )

    def __len__(self) -> int:
        return int(self.tokens.size) // self.length

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The windows with these indices: (len(indices), length)."""
        offsets = indices[:, None] * self.length + np.arange(self.length)
        return np.asarray(self.tokens[offsets], np.int64)


def training_batch(
    windows: Windows, *, seed: int, step: int, size: int, rank: int = 0, world_size: int = 1
) -> npt.NDArray[np.int64]:
    """The windows that one rank trains on at one step.

    Parameters
    ----------
    windows
        The training part of the corpus.
    seed
        Chooses the order; every epoch is shuffled anew.
    step
        The optimizer step, from 0.
    size
        Windows of this rank per step; `size` x `world_size` are the global batch.
    rank, world_size
        Number of this process, and number of all that train.

    Returns
    -------
    (size, windows.length) token ids
    """
    first = (step * world_size + rank) * size
    numbers = np.arange(first, first + size, dtype=np.int64)
    epochs, positions = np.divmod(numbers, len(windows))
    indices = np.empty_like(numbers)
    for epoch in np.unique(epochs):
        of_epoch = epochs == epoch
        indices[of_epoch] = _epoch_order(seed, int(epoch), len(windows))[positions[of_epoch]]
    return windows.read(indices)


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)

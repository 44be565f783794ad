"""Hidden states between blocks, on disk: what passes keep, and from which they resume."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from spectra.store.weights import write_weights
from spectra_data.errors import InputError
from spectra_data.partial import partial_file

HIDDEN, GRADIENT, COMPRESSED = "hidden", "gradient", "compressed"
"""Inputs of a block, or of the one after the last; gradients of the loss by them; inputs behind the
compressed blocks before."""


class HiddenStates:
    """Hidden states of all windows, by kind and block.

    Parameters
    ----------
    folder
        Folder of their files: one a kind and block, which appears when it is complete. They are not
        synced to disk: after a power cut, the pass that left them starts anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, kind: str, block: int, batches: Sequence[torch.Tensor]) -> None:
        """Write the states at a block, in batches of (windows, length, features).

        Raises
        ------
        InputError
            When they cannot be written.
        """
        path = self._path(kind, block)
        windows = (window for batch in batches for window in batch)
        try:
            with partial_file(path) as partial:
                write_weights(partial, {str(n): window for n, window in enumerate(windows)})
                partial.replace(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write {path}: {error}") from error

    def has(self, kind: str, block: int) -> bool:
        """Whether the states at a block are there."""
        path = self._path(kind, block)
        try:
            with safe_open(path, framework="pt"):
                return True
        except FileNotFoundError:
            return False
        except (OSError, SafetensorError):  # cut short, as by a power cut
            path.unlink()
            return False

    def of(self, kind: str, block: int, windows: range) -> torch.Tensor:
        """The states of some windows at a block, in whatever batches they were written."""
        with safe_open(self._path(kind, block), framework="pt") as file:
            return torch.stack([file.get_tensor(str(number)) for number in windows])

    def resumed(self, kinds: Sequence[str], done: Sequence[bool]) -> int:
        """The block at which a forward pass goes on: 0, or the last whose states are there.

        Parameters
        ----------
        kinds
            Kinds of states that it needs.
        done
            Whether each block is done; those before must be.
        """
        left = done.index(False) if False in done else len(done)
        held = (i for i in range(left, 0, -1) if all(self.has(kind, i) for kind in kinds))
        return next(held, 0)

    def drop(self, kind: str, block: int) -> None:
        """Remove the states at a block, if they are there."""
        self._path(kind, block).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all states."""
        for kind in (HIDDEN, GRADIENT, COMPRESSED):
            for path in self._folder.glob(f"{kind}-*.safetensors"):
                path.unlink()

    def _path(self, kind: str, block: int) -> Path:
        return self._folder / f"{kind}-{block}.safetensors"

"""Disk space of a calibration: known before it starts, and required to be free."""

import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
from rich.filesize import decimal

from spectra.allocation.rankmap import Module
from spectra.checkpoint.notes import note
from spectra.compression.methods import WeighingMethod
from spectra.eigen import SINGLE_SIDE, SMALL_SIDE
from spectra.matrices import Matrix
from spectra.models.source import Source
from spectra_data.errors import InputError

SINGLE, DOUBLE = 4, 8
WORTH_SAYING = 1_000_000_000
"""Bytes from which a line says how much is needed, and where."""
SIBLINGS = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate and up", "up": "gate and up"}
"""Roles whose matrices read the same input."""


def states_bytes(windows: torch.Tensor, source: Source) -> int:
    """Bytes of the hidden states at one block, of windows of tokens, (windows, length)."""
    width: int = source.config.get_text_config().hidden_size
    return windows.numel() * width * SINGLE


def decomposition_bytes(matrices: Collection[Matrix], method: WeighingMethod) -> int:
    """Bytes of the decompositions of a block's matrices, roots included."""
    total = 0
    roots: dict[str, int] = {}
    for matrix in matrices:
        side = matrix.full_rank
        number = SINGLE if side >= SINGLE_SIDE else DOUBLE
        total += side * side * DOUBLE if side < SMALL_SIDE else side // 2 * side * number
        total += 5 * side * DOUBLE
        of_outputs = method.takes_outputs(matrix.rows, matrix.cols)
        owner = re.sub(r"[^.]+$", "", matrix.name) + SIBLINGS.get(matrix.role, matrix.role)
        roots[matrix.name if of_outputs else owner] = method.root_numbers(of_outputs, side)
    return total + DOUBLE * sum(roots.values())


def calibration_bytes(
    blocks: Sequence[Collection[Matrix]], states: int, method: WeighingMethod
) -> int:
    """Largest number of bytes on disk during a calibration.

    Parameters
    ----------
    blocks
        Matrices to decompose, by block.
    states
        Bytes of the hidden states at one block.
    method
        Method of weighting.
    """
    sizes = [decomposition_bytes(block, method) for block in blocks]
    if not method.backward:  # the states before and after a block
        return sum(sizes) + 2 * states
    at_block = (sum(sizes[i:]) + (i + 3) * states for i in range(len(sizes)))
    return max(at_block, default=0)


def factors_bytes(modules: Iterable[Module]) -> int:
    """Bytes of the factors of matrices."""
    return SINGLE * sum(m.rank * (m.rows + m.cols) for m in modules)


def require_space(folder: Path, needed: int, held: int, what: str) -> None:
    """Require disk space, and say how much a large one takes.

    Parameters
    ----------
    folder
        Where it is needed.
    needed, held
        Bytes in all, and those of them that are there already.
    what
        What needs it, for messages.

    Raises
    ------
    InputError
        When too little is free.
    """
    free = shutil.disk_usage(folder).free
    if needed - held > free:
        raise InputError(
            f"{what} needs {decimal(needed)} of scratch in {folder}, but {decimal(free)} are free: "
            "set SPECTRA_CACHE to a folder on a larger disk, or name fewer windows"
        )
    if needed > WORTH_SAYING:
        note(f"{what} takes up to {decimal(needed)} of scratch in {folder}")

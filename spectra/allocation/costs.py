"""The cost of a rank: parameters and bytes of a matrix in a storage."""

import numpy as np

from spectra.storages.registry import DEFAULT_STORAGE, STORAGES, Integers, Storage

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Bytes of a parameter, by its stored format."""


def factored_parameters(
    rows: Integers | int, cols: Integers | int, rank: Integers | int, storage: str = DEFAULT_STORAGE
) -> Integers:
    """Parameters of matrices of some rank; arguments broadcast."""
    rows, cols, rank = (np.asarray(count, np.int64) for count in (rows, cols, rank))
    return np.asarray(require_storage(storage).parameters(rows, cols, rank), np.int64)


def factored_bytes(
    rows: Integers | int, cols: Integers | int, rank: Integers | int, storage: str, stored: str
) -> Integers:
    """Bytes of matrices of some rank, with parameters in the format `stored`."""
    rows, cols, rank = (np.asarray(count, np.int64) for count in (rows, cols, rank))
    width = bytes_per_parameter(stored)
    return np.asarray(require_storage(storage).bytes(rows, cols, rank, width), np.int64)


def break_even(rows: int, cols: int, storage: str = DEFAULT_STORAGE) -> float:
    """The rank above which storing a matrix as factors costs more than storing it whole.

    rows * cols / (rows + cols) for two factors.
    """
    sides = np.asarray(rows, np.int64), np.asarray(cols, np.int64)
    dense = np.asarray(rows * cols, np.float64)
    return float(require_storage(storage).rank_of(*sides, dense))


def require_storage(storage: str) -> Storage:
    """A storage by its name.

    Raises
    ------
    InputError
        When there is no such storage; the message lists those that exist.
    """
    return STORAGES[storage]


def bytes_per_parameter(stored: str) -> int:
    """Bytes of a parameter in a format; 2, as for bfloat16, if the format packs several."""
    return BYTES.get(stored, 2)

"""What a rank costs: parameters of a matrix stored whole, as two factors, or pivoted."""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from spectra_data.errors import InputError

Storage = Literal["factors", "pivoted"]
STORAGES: tuple[str, ...] = get_args(Storage)
Integers = npt.NDArray[np.int64]
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Of a parameter, by the format that it is stored in."""


def factored_parameters(
    rows: Integers | int, cols: Integers | int, rank: Integers | int, storage: str = "factors"
) -> Integers:
    """Parameters of a matrix of some rank.

    ``factors``: r(m + n), of two factors. ``pivoted``: r(m + n - r), r rows of the product and the
    others expressed through them. Arguments broadcast.
    """
    rows, cols, rank = np.asarray(rows), np.asarray(cols), np.asarray(rank)
    saved = rank if require_storage(storage) == "pivoted" else 0
    return np.asarray(rank * (rows + cols - saved), np.int64)


def break_even(rows: int, cols: int, storage: str = "factors") -> float:
    """The rank above which storing a matrix in factors costs more than storing it whole.

    rows * cols / (rows + cols) for two factors; the full rank for pivoted storage.
    """
    whole = rows * cols / (rows + cols)
    return whole if require_storage(storage) == "factors" else float(min(rows, cols))


def require_storage(storage: str) -> str:
    """Require a known way to store factors.

    Raises
    ------
    InputError
        With those that there are.
    """
    if storage not in STORAGES:
        raise InputError(f"no storage {storage!r}; there are: {', '.join(STORAGES)}")
    return storage


def bytes_per_parameter(stored: str) -> int:
    """Bytes of a parameter in a format; 2, of bfloat16, for formats that pack several."""
    return BYTES.get(stored, 2)

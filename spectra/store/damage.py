"""What is wrong with a store, said where reading it fails."""

import contextlib
from collections.abc import Iterator

from spectra.store.location import Location
from spectra.store.verify import verify
from spectra_data.errors import InputError, first_line


@contextlib.contextmanager
def unless_damaged(store: Location) -> Iterator[None]:
    """Read a store; where that fails because the store is damaged, say so in one line.

    Anything may be raised by what reads a damaged file. Only `verify` tells that from a fault of
    the program, which is raised as it is.

    Raises
    ------
    InputError
        With what is wrong with the store.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if (found := _damage(store)) is None:
            raise
        raise InputError(
            f"{store} is damaged: {found} (`spectra verify {store}` says all)"
        ) from error


def _damage(store: Location) -> str | None:
    try:
        return next(iter(verify(store).problems), None)
    except Exception as error:  # it reads the same files
        return first_line(error)

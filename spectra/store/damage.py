"""A failed read of a damaged store, reported in one line."""

import contextlib
from collections.abc import Iterator

from spectra.store.location import Location
from spectra.store.verify import verify
from spectra_data.errors import InputError, first_line


@contextlib.contextmanager
def unless_damaged(store: Location) -> Iterator[None]:
    """Read a store; if that fails because the store is damaged, say so in one line.

    Reading a damaged file may raise any error. Only `verify` distinguishes that from a fault of the
    program, which is raised unchanged.

    Raises
    ------
    InputError
        When the store is damaged; the message says how.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if (found := _damage(store)) is None:
            raise
        raise InputError(
            f"{store} is damaged: {found} (`spectra verify {store}` lists all damage)"
        ) from error


def _damage(store: Location) -> str | None:
    try:
        return next(iter(verify(store).problems), None)
    except Exception as error:  # it reads the same files
        return first_line(error)

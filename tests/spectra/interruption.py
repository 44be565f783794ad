"""Stops what is written after some files, as a kill or a full disk would."""

import contextlib
import itertools

import pytest

from spectra.store import files


class StoppedError(Exception):
    """In the place of a kill."""


@contextlib.contextmanager
def stopped_after(allowed, error=StoppedError):
    """Let so many files of local stores be written or removed; every later one raises."""
    calls = iter(range(1_000_000))
    write_file, delete = files.write_file, files.DurableStore.delete

    def counted_write(path, content):
        if next(calls) >= allowed:
            raise error
        write_file(path, content)

    async def counted_delete(store, key):
        if next(calls) >= allowed:
            raise error
        await delete(store, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write_file", counted_write)
        patch.setattr(files.DurableStore, "delete", counted_delete)
        yield


def stopped_at(monkeypatch, kind, name, number):
    """Let a method be called so many times; the next call raises, and all after it run again.

    Returns the arguments of the calls that ran, in a list that grows.
    """
    calls, real, ran = itertools.count(), getattr(kind, name), []

    def stopping(self, *arguments):
        if next(calls) == number:
            raise StoppedError
        real(self, *arguments)
        ran.append(arguments)

    monkeypatch.setattr(kind, name, stopping)
    return ran

"""Results that are kept next to the spectra they come from, in a group of their own.

A chunk has two possible places, zarr's key encodings ``default`` (``c/0/1``) and ``v2`` (``0.1``).
A group is written to the places that are not in use; then one write of the root's metadata leads
readers there. Until that write, come what may, they find the previous group; those that opened it
earlier still do afterwards, until the group is written once more.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import xarray as xr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from spectra.store.checked import CheckedStore
from spectra.store.checksums import ABSENT
from spectra.store.location import Location, local_path, zarr_store
from spectra.store.lock import locked
from spectra.store.metadata import (
    Node,
    keys,
    publish,
    published,
    read,
    read_node,
    remove,
    write,
    write_node,
)
from spectra.store.places import DEFAULT, OTHER, is_of, moved, owner
from spectra_data.errors import InputError
from spectra_data.partial import remove_leftovers

PATIENCE = 30.0
"""Seconds to wait for another process that writes to the store."""
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
"""The stores that the current context holds."""


def write_group(store: Location, name: str, dataset: xr.Dataset) -> None:
    """Write a group into a store, replacing an earlier one.

    Raises
    ------
    InputError
        When another process keeps writing to the store, or it cannot be written; it is then
        unchanged.
    """
    new = _encoded(name, dataset)
    with held(store):
        try:
            _swap_in(CheckedStore(zarr_store(store)), name, new)
        except OSError as error:  # a full disk, say
            why = error.strerror or str(error)
            raise InputError(f"cannot write {store}: {why}; its contents are kept") from error


@contextlib.contextmanager
def held(store: Location) -> Iterator[None]:
    """Hold a store for a block that reads, changes and writes it, nested blocks included.

    Raises
    ------
    InputError
        When another process keeps writing to the store.
    """
    path = local_path(store)
    if path is None or path in _held.get():
        yield
        return
    with locked(path, PATIENCE):
        remove_leftovers(path, below=True)
        before = _held.set(_held.get() | {path})
        try:
            yield
        finally:
            _held.reset(before)


def _encoded(name: str, dataset: xr.Dataset) -> MemoryStore:
    store = MemoryStore()
    compressed = {"compressors": [ZstdCodec(checksum=True)]}
    encoding: Any = dict.fromkeys(dataset.variables, compressed)
    dataset.to_zarr(
        store, group=name, zarr_format=3, consolidated=False, mode="w", encoding=encoding
    )
    return store


def _swap_in(target: CheckedStore, name: str, new: MemoryStore) -> None:
    nodes = published(read_node(target) or {})
    old = {path: node for path, node in nodes.items() if _within(path, name)}
    in_use = [node.get("chunk_key_encoding") for node in old.values()]
    encoding = OTHER if DEFAULT in in_use else DEFAULT
    held_before = [key for key in keys(target, f"{name}/") if is_of(key, old)]
    # those of a killed writer, and those in use before the last write
    remove(target, set(keys(target, f"{name}/")) - set(held_before))
    changed: dict[str, Node | None] = dict.fromkeys(old)
    for key in keys(new, f"{name}/"):
        path, chunk = owner(key)
        if chunk is not None:
            write(target, moved(key, encoding), read(new, key) or b"")
            continue
        node = read_node(new, path) or {}
        if node["node_type"] == "array":
            node["chunk_key_encoding"] = encoding
        changed[path] = node
    gone = [key for key in held_before if changed[owner(key)[0]] is None]
    retired = {key: ABSENT for key in held_before if key in gone or owner(key)[1] is not None}
    with target.transaction(target.written | retired):
        for path, changed_node in changed.items():
            if changed_node is not None:
                write_node(target, changed_node, path)
        publish(target, changed)
    remove(target, gone)


def _within(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}/")

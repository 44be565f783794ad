"""Raw files of a store, and the metadata among them."""

import asyncio
import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ZarrUserWarning
from zarr.storage import MemoryStore

from spectra.store.checksums import digest
from spectra_data.errors import InputError
from spectra_data.reading import parse_json

ROOT = "zarr.json"
Node = dict[str, Any]


def read(store: Store, key: str) -> bytes | None:
    """The content of a file; None if it is missing."""

    async def get() -> bytes | None:
        found = await store.get(key, default_buffer_prototype())
        return None if found is None else found.to_bytes()

    return sync(get())


def digests(store: Store, wanted: Iterable[str]) -> dict[str, str]:
    """The checksums of files, by key; `ABSENT` for a missing one."""
    at_once = asyncio.Semaphore(4)

    async def one(key: str) -> tuple[str, str]:
        async with at_once:
            found = await store.get(key, default_buffer_prototype())
            content = None if found is None else found.as_buffer_like()
            return key, await asyncio.to_thread(digest, content)

    async def all_of_them() -> list[tuple[str, str]]:
        return await asyncio.gather(*(one(key) for key in wanted))

    return dict(sync(all_of_them()))


def write(store: Store, key: str, content: bytes) -> None:
    """Write a file, replacing an earlier one."""
    sync(store.set(key, default_buffer_prototype().buffer.from_bytes(content)))


def keys(store: Store, prefix: str = "") -> list[str]:
    """Keys of the files with a prefix, sorted."""

    async def found() -> list[str]:
        return [key async for key in store.list_prefix(prefix)]

    return sorted(sync(found()))


def remove(store: Store, gone: Iterable[str]) -> None:
    """Remove files."""

    async def delete() -> None:
        for key in gone:
            await store.delete(key)

    sync(delete())


def copy(new: MemoryStore, target: Store) -> None:
    """Copy a new store; its root, without which it does not count as a store, comes last."""

    async def copy_one(key: str) -> None:
        value = await new.get(key, default_buffer_prototype())
        assert value is not None
        await target.set(key, value)

    async def copy_all() -> None:
        copies = [copy_one(key) async for key in new.list() if key != ROOT]
        # no copy continues in the background after another has failed
        for failure in await asyncio.gather(*copies, return_exceptions=True):
            if failure is not None:
                raise failure
        await copy_one(ROOT)

    sync(copy_all())


def read_node(store: Store, path: str = "") -> Node | None:
    """The metadata of a group or an array, from its own file."""
    content = read(store, f"{path}/{ROOT}" if path else ROOT)
    if content is None:
        return None
    node = parse_json(content, f"{path}/{ROOT}" if path else ROOT)
    if not isinstance(node, dict):
        raise InputError(f"{path or 'the root'} has no metadata: its {ROOT} holds no JSON object")
    return node


def write_node(store: Store, node: Node, path: str = "") -> None:
    """Write the metadata of a group or an array into its own file."""
    write(store, f"{path}/{ROOT}" if path else ROOT, json.dumps(node).encode())


def published(root: Node) -> dict[str, Node]:
    """The metadata of all groups and arrays by path, as readers get it from the root."""
    found = (root.get("consolidated_metadata") or {}).get("metadata")
    return dict(found or {})


def replace_attributes(store: Store, attrs: Mapping[str, Any]) -> None:
    """Change the root's attributes in one write, which leaves the other metadata unchanged."""
    write_node(store, (read_node(store) or {}) | {"attributes": dict(attrs)})


def publish(store: Store, changed: Mapping[str, Node | None]) -> None:
    """Change the metadata of some groups and arrays in the root, or remove it, in one write."""
    root = read_node(store) or {}
    nodes = published(root)
    for path, node in changed.items():
        if node is None:
            nodes.pop(path, None)
        else:
            nodes[path] = node | _consolidated({}) if node["node_type"] == "group" else node
    if nodes != published(root):
        write_node(store, root | _consolidated(nodes))


def _consolidated(nodes: Mapping[str, Node]) -> Node:
    described = {"kind": "inline", "must_understand": False, "metadata": dict(nodes)}
    return {"consolidated_metadata": described}


def consolidate(store: Store) -> None:
    """Write the metadata of all groups and arrays of a new store into the root's."""
    with warnings.catch_warnings():
        # written on purpose: without it, opening a store over a network reads every zarr.json
        warnings.filterwarnings("ignore", "Consolidated metadata", ZarrUserWarning)
        zarr.consolidate_metadata(store)

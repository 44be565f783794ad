"""Where the chunks of an array are, and which of them readers see."""

import re
from collections.abc import Mapping

from spectra.store.metadata import Node

DEFAULT: Node = {"name": "default", "configuration": {"separator": "/"}}
"""Chunks at ``c/0/1``: of all that is recorded, and of every other write of a derived group."""
OTHER: Node = {"name": "v2", "configuration": {"separator": "."}}
"""Chunks at ``0.1``: of the other writes of a derived group."""
FILE = re.compile(
    r"(?P<path>.*?)/((?P<metadata>zarr\.json)|c(?P<default>(/\d+)*)|(?P<other>\d+(\.\d+)*))"
)


def owner(key: str) -> tuple[str, Node | None]:
    """The group or array that a file belongs to, and the place of a chunk; None for metadata."""
    found = FILE.fullmatch(key)
    if found is None:
        return "", None
    if found["metadata"]:
        return found["path"], None
    return found["path"], DEFAULT if found["other"] is None else OTHER


def moved(key: str, encoding: Node) -> str:
    """Key of a chunk in a place, from its key in `DEFAULT`."""
    if encoding == DEFAULT:
        return key
    path = owner(key)[0]
    return f"{path}/{key.removeprefix(f'{path}/c').strip('/').replace('/', '.') or '0'}"


def is_of(key: str, nodes: Mapping[str, Node]) -> bool:
    """Whether a file belongs to these groups and arrays, in the place that they have now."""
    path, encoding = owner(key)
    return path in nodes and encoding in (None, nodes[path].get("chunk_key_encoding"))


def is_seen(key: str, nodes: Mapping[str, Node]) -> bool:
    """Whether a reader with this metadata reads a file as a chunk."""
    path, encoding = owner(key)
    if encoding is None or not is_of(key, nodes):
        return False
    numbers = [int(n) for n in re.findall(r"\d+", key.removeprefix(path))]
    chunk = nodes[path]["chunk_grid"]["configuration"]["chunk_shape"]
    shape = nodes[path]["shape"]
    return all(n * c < size for n, c, size in zip(numbers, chunk, shape, strict=False))

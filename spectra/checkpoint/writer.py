"""Write a checkpoint in Hugging Face's layout, shard by shard, making tensors one by one.

Memory is bounded by one shard. A killed process can resume: a shard gets its final name once it is
on disk, with its hashes in a journal, and config.json, without which the folder is not a
checkpoint, comes last. Shards of the killed process are reused only if they are whole. Only one
process at a time writes to a folder (`writing`).
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from spectra.checkpoint.digests import digest
from spectra.machine.cores import available_cores
from spectra.store.destination import make_folder
from spectra.store.durable import replacing, sync_folder, sync_tree, write_file
from spectra.store.lock import locked
from spectra.store.weights import write_weights
from spectra_data.errors import InputError
from spectra_data.integrity import sealed, unsealed
from spectra_data.partial import remove_leftovers

SHARD_BYTES = 500_000_000
JOURNAL = "unfinished.json"
INDEX = "model.safetensors.index.json"

Notes = dict[str, Any]
Make = Callable[[str], tuple[dict[str, torch.Tensor], Notes]]
"""Maps the name of a source tensor to the tensors that are stored for it, and notes to keep."""


@dataclass
class Written:
    """Contents of a folder after writing."""

    sha256: dict[str, str] = field(default_factory=dict)
    """Hash of every tensor, by name."""
    notes: dict[str, Notes] = field(default_factory=dict)
    """Notes by the name of the source tensor."""
    bytes: int = 0
    """Bytes of the tensors."""
    parameters: int = 0
    """Number of floating-point entries."""
    reused: int = 0
    """Number of source tensors that an interrupted process had already written."""


def shards_of(sizes: Mapping[str, int], limit: int = SHARD_BYTES) -> list[list[str]]:
    """Group tensors into shards of limited size, in their order.

    Parameters
    ----------
    sizes
        Bytes of every source tensor, by name.
    limit
        Largest shard in bytes; a single tensor that is larger gets its own shard.
    """
    shards: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not shards or filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_shards(
    out: Path,
    shards: Sequence[Sequence[str]],
    make: Make,
    *,
    key: str,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Written:
    """Make and write every shard that is not written yet.

    Parameters
    ----------
    out
        Folder of the result, held by `writing`: empty, or left by an interrupted call with the same
        key.
    shards
        Names of source tensors, by shard.
    make
        Function that makes the stored tensors.
    key
        Identifier of everything that the result depends on.
    progress
        Called with the number of source tensors done, and their total.

    Raises
    ------
    InputError
        When the folder holds another result.
    """
    plan = hashlib.sha256(json.dumps([key, list(map(list, shards))]).encode()).hexdigest()
    journal = begin(out, plan)
    written = Written()
    count = sum(map(len, shards))
    done = 0
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = _name(number, len(shards))
        entry = journal.get(file)
        if entry is None or not _is_whole(out / file, entry):
            entry = _write(out / file, names, make, _counted(progress, done, count))
            journal[file] = entry
            _save(out, plan, journal)
        else:
            written.reused += len(names)
            progress(done + len(names), count)
        done += len(names)
        written.sha256 |= entry["sha256"]
        written.notes |= entry["notes"]
        written.bytes += entry["bytes"]
        written.parameters += entry["parameters"]
        weight_map |= dict.fromkeys(entry["sha256"], file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": written.bytes}, "weight_map": weight_map}
        write_file(out / INDEX, json.dumps(index, indent=2).encode())
    return written


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Hold the folder of a result while it is made.

    The folder is new, empty, or holds a partial result. Unfinished files of a killed process are
    removed, and so is a new folder that stays empty.

    Raises
    ------
    InputError
        When it holds something else, is not writable, or another process writes to it.
    """
    new = not out.exists()
    make_folder(out)
    try:
        with locked(out):
            _require_free(out)
            remove_leftovers(out)
            yield
    finally:
        if new:
            with contextlib.suppress(OSError):  # it is not empty
                out.rmdir()


def _require_free(out: Path) -> None:
    held = [path.name for path in out.iterdir() if not path.match(".*.partial")]
    if held and JOURNAL not in held:
        raise InputError(f"{out} is not empty: name another folder, or remove it")
    if not os.access(out, os.W_OK):
        raise InputError(f"cannot write {out}: no write permission")


def begin(out: Path, key: str) -> dict[str, Any]:
    """Mark a folder as a partial result; return the journal's entries of the shards that it holds.

    Raises
    ------
    InputError
        When it holds another partial result, or cannot be written.
    """
    if (out / JOURNAL).exists():
        try:
            journal = unsealed((out / JOURNAL).read_bytes())
            if journal["key"] == key:
                return dict(journal["shards"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise InputError(f"{out} holds another partial result: name another folder, or remove it")
    try:
        _save(out, key, {})
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    return {}


def finish(out: Path, config: Mapping[str, Any]) -> None:
    """Make the folder a checkpoint: sync all files to disk, then write its configuration."""
    sync_tree(out)
    write_file(out / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    (out / JOURNAL).unlink(missing_ok=True)
    sync_folder(out)


def _counted(progress: Callable[[int, int], None], done: int, count: int) -> Callable[[int], None]:
    return lambda more: progress(done + more, count)


def _save(out: Path, key: str, journal: Mapping[str, Any]) -> None:
    write_file(out / JOURNAL, sealed({"key": key, "shards": journal}))


def _is_whole(shard: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a shard is exactly what an interrupted process wrote."""
    try:
        tensors = load_file(shard)
    except (OSError, SafetensorError):
        return False
    found = {name: digest(value).hex() for name, value in tensors.items()}
    return bool(found == entry["sha256"])


def _write(
    path: Path, names: Sequence[str], make: Make, progress: Callable[[int], None]
) -> dict[str, Any]:
    tensors: dict[str, torch.Tensor] = {}
    notes: dict[str, Notes] = {}
    for i, name in enumerate(names):
        made, about = make(name)
        tensors |= {key: value.detach().cpu().contiguous() for key, value in made.items()}
        if about:
            notes[name] = about
        progress(i + 1)
    with ThreadPoolExecutor(available_cores()) as pool:
        hashes = dict(zip(tensors, pool.map(digest, tensors.values()), strict=True))
    try:
        with replacing(path) as partial:
            write_weights(partial, tensors, {"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path}: {error}") from error
    return {
        "sha256": {name: value.hex() for name, value in hashes.items()},
        "notes": notes,
        "bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
        "parameters": sum(t.numel() for t in tensors.values() if t.is_floating_point()),
    }


def _name(number: int, count: int) -> str:
    return (
        "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
    )

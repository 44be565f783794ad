"""What an adapter's folder says of itself, in ``adapter.json``: which checkpoint it changes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from spectra_data.errors import InputError, first_line
from spectra_data.reading import read_json

FILE = "adapter.json"
TENSORS = "changed.safetensors"
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
SCHEMA = "spectra.adapter/1"
Kind = Literal["changed", "peft"]


@dataclass(frozen=True)
class Adapter:
    """What an adapter's folder says of itself."""

    base: str
    """Address of the checkpoint that it changes."""
    identity: str
    """Of the base: see `Checkpoint.identity`."""
    kind: Kind
    sha256: str = ""
    """Of the changed tensors, or of the files of `peft`."""
    content: str = ""
    """Of a local base's files and configuration, which copies of it share."""
    beside: str = ""
    """The way to a local base from the adapter's folder, so that both can be moved together."""
    schema: str = SCHEMA


def adapter_of(address: str) -> Adapter | None:
    """The adapter in a folder; None where there is none.

    Raises
    ------
    InputError
        When it is damaged.
    """
    file = Path(address) / FILE
    if not file.is_file():
        return None
    try:
        found = Adapter(**read_json(file))
    except TypeError as error:
        raise InputError(f"{file} is damaged: {first_line(error)}") from error
    near = Path(address, found.beside)
    if found.beside and not Path(found.base).exists() and near.exists():
        found = replace(found, base=str(near.resolve()))
    if found.schema != SCHEMA or found.kind not in ("changed", "peft"):
        raise InputError(f"{file} is of another version: {found.schema}, not {SCHEMA}")
    return found

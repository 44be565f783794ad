"""The description in an adapter's folder, ``adapter.json``: which checkpoint it changes."""

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
    """Description of an adapter, stored in its folder."""

    base: str
    """Address of the checkpoint that the adapter changes."""
    identity: str
    """Identity of the base: see `Checkpoint.identity`."""
    kind: Kind
    sha256: str = ""
    """Hash of the changed tensors, or of the files that `peft` wrote."""
    content: str = ""
    """Hash of a local base's files and configuration; copies of the base share it."""
    beside: str = ""
    """Path from the adapter's folder to a local base, so that both can be moved together."""
    schema: str = SCHEMA


def adapter_of(address: str) -> Adapter | None:
    """The adapter in a folder; None if the folder holds no adapter.

    Raises
    ------
    InputError
        When the description is damaged.
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
        raise InputError(f"{file} has another version of the format: {found.schema}, not {SCHEMA}")
    return found

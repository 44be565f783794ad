"""Location of a store: a folder on this machine, or any address that fsspec writes to."""

from pathlib import Path

import fsspec
from zarr.abc.store import Store
from zarr.storage import FsspecStore

from spectra.store.durable import DurableStore
from spectra_data.errors import InputError

Location = str | Path


def local_path(store: Location) -> Path | None:
    """The folder of a store on this machine; None for an address elsewhere."""
    address = str(store)
    if address.startswith("file://"):
        return Path(address.removeprefix("file://"))
    return None if "://" in address else Path(address)


def exists(store: Location) -> bool:
    """Whether something is at a location already.

    Raises
    ------
    InputError
        When the address cannot be understood, or needs a package that is not installed.
    """
    path = local_path(store)
    if path is not None:
        return path.exists()
    system, root = _file_system(str(store))
    system.invalidate_cache()
    return bool(system.exists(f"{root}/zarr.json"))


def zarr_store(store: Location) -> Store:
    """The zarr store at a location, to write to."""
    path = local_path(store)
    if path is not None:
        return DurableStore(path.absolute())
    _file_system(str(store))
    return FsspecStore.from_url(str(store), read_only=False)


def _file_system(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        system, root = fsspec.core.url_to_fs(address)
    except ImportError as error:
        protocol = address.partition("://")[0]
        extra = f"pip install 'spectra-dynamics[{protocol}]'" if protocol == "s3" else str(error)
        raise InputError(f"{address} needs another package: {extra}") from error
    except ValueError as error:
        raise InputError(f"{address} is not the address of a store: {error}") from error
    return system, root

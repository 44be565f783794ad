"""Location of a store: a folder on this machine, or any address that fsspec writes to."""

from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore

from spectra.store.files import DurableStore
from spectra.store.schema import SCHEMA
from spectra_data.errors import InputError
from spectra_data.reading import read_json

if TYPE_CHECKING:
    import xarray as xr

Location = str | Path


def local_path(store: Location) -> Path | None:
    """The folder of a store on this machine; None for an address elsewhere."""
    address = str(store)
    if address.startswith("file://"):
        return Path(address.removeprefix("file://"))
    return None if "://" in address else Path(address)


def address_of(run: "xr.DataTree") -> str | None:
    """The address that a store was opened from; None for a tree that was made otherwise."""
    source = run.encoding.get("source")
    return None if source is None else str(source)


def require_address(store: "xr.DataTree | Location") -> Location:
    """The address of a store, opened or not.

    Raises
    ------
    InputError
        When the tree was not opened from a store.
    """
    if isinstance(store, str | Path):
        return store
    if (address := address_of(store)) is None:
        raise InputError("this tree was not opened from a store: name the store's address")
    return address


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


def check_schema(store: str | Path) -> None:
    """Require a store of this schema.

    Raises
    ------
    InputError
        With one line: nothing is there, the folder is not a store, or the schema is unknown.
    """
    path = local_path(store)
    if path is None:
        try:
            there = exists(store)
            schema = zarr.open_group(str(store), mode="r").attrs.get("schema") if there else None
        except InputError:
            raise
        except Exception as error:  # from fsspec, its backend, or the network
            raise InputError(f"cannot open {store}: {error}") from error
        if not there:
            raise InputError(f"no store at {store}")
    else:
        if not path.exists():
            raise InputError(f"no store at {path}")
        try:
            attrs = read_json(path / "zarr.json")["attributes"]
            schema = attrs.get("schema")
        except (InputError, KeyError, TypeError, AttributeError) as error:
            inner = next(iter(sorted(path.glob("*.zarr"))), None) if path.is_dir() else None
            hint = f" (did you mean {inner}?)" if inner else ""
            raise InputError(
                f"{path} is not a zarr store: it has no readable zarr.json{hint}"
            ) from error
    if schema != SCHEMA:
        described = "no schema" if schema is None else f"the schema {schema!r}"
        raise InputError(f"{store} has {described}; this version reads {SCHEMA!r}")


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

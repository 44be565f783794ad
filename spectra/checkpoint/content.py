"""Identity of a local checkpoint at any path: the hash of the contents of its files."""

import hashlib
import json
from pathlib import Path

from spectra.checkpoint.address import Address
from spectra.checkpoint.checkpoint import Checkpoint


def content_of(address: Address, checkpoint: Checkpoint) -> str | None:
    """Hash of a local checkpoint's weights and configuration; copies of it share the hash.

    Reads all of its files. None for a remote checkpoint, whose identity names a commit or a
    version.

    Parameters
    ----------
    address, checkpoint
        Address of the checkpoint, and the checkpoint opened there.
    """
    place = Path(address.place)
    if not place.exists():
        return None
    folder = place if place.is_dir() else place.parent
    known = hashlib.sha256(
        json.dumps(dict(checkpoint.config), sort_keys=True, default=str).encode()
    )
    for name in sorted(checkpoint.files):
        with (folder / name).open("rb") as file:
            known.update(hashlib.file_digest(file, "sha256").digest())
    return known.hexdigest()

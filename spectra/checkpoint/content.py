"""What tells a checkpoint from another wherever it lies: the hash of what is in its files."""

import hashlib
import json
from pathlib import Path

from spectra.checkpoint.address import Address
from spectra.checkpoint.checkpoint import Checkpoint


def content_of(address: Address, checkpoint: Checkpoint) -> str | None:
    """Hash of a local checkpoint's weights and configuration, which copies of it share.

    Its files are read for it. None of a checkpoint elsewhere, whose identity names a commit or a
    version.

    Parameters
    ----------
    address, checkpoint
        Where it lies, and what was opened there.
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

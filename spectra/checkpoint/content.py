"""What tells a checkpoint from another wherever it lies: the hash of what is in its files."""

import hashlib
import json
from pathlib import Path

from spectra.checkpoint.address import one_address
from spectra.checkpoint.checkpoint import open_checkpoint


def content_of(address: str) -> str | None:
    """Hash of a local checkpoint's weights and configuration, which copies of it share.

    Its files are read for it. None of a checkpoint elsewhere, whose identity names a commit or a
    version.

    Raises
    ------
    InputError
        When there is no checkpoint.
    """
    if not Path(address).exists():
        return None
    place = Path(one_address(address).place)
    folder = place if place.is_dir() else place.parent
    checkpoint = open_checkpoint(address)
    known = hashlib.sha256(
        json.dumps(dict(checkpoint.config), sort_keys=True, default=str).encode()
    )
    for name in sorted(checkpoint.files):
        with (folder / name).open("rb") as file:
            known.update(hashlib.file_digest(file, "sha256").digest())
    return known.hexdigest()

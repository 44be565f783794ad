"""Files of weights that others may read: with the permissions of any other new file.

safetensors makes its files readable by their owner alone (mode 0600), under every umask: a group
that shares a folder could read nothing but the configuration.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file  # noqa: TID251

from spectra_data.partial import partial_file


def write_weights(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as a safetensors file.

    Raises
    ------
    OSError, safetensors.SafetensorError
        When it cannot be written.
    """
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(stored, path, metadata=None if metadata is None else dict(metadata))
    path.chmod(_mode_of_new_files(path.parent))


def share(folder: Path) -> None:
    """Give all files of a new folder, which a library has filled, the permissions of new files."""
    mode = _mode_of_new_files(folder)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _mode_of_new_files(folder: Path) -> int:
    """Mode that the umask, or the folder's access list, gives to a new file.

    A file shows it: os.umask tells the umask only by changing it, for all threads.
    """
    with partial_file(folder / "mode") as fresh:
        return fresh.stat().st_mode & 0o777

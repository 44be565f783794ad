"""Folders that ``save_to_disk`` of the library `datasets` wrote: which files hold the data."""

from collections.abc import Sequence
from pathlib import Path

from spectra_data.errors import InputError
from spectra_data.reading import read_json

STATE = "state.json"
SPLITS = "dataset_dict.json"
DESCRIPTIONS = (STATE, "dataset_info.json")


def require_one_split(folder: Path) -> None:
    """Refuse a folder of several splits, which would be read one after the other.

    Raises
    ------
    InputError
        With the names of the splits.
    """
    if not (folder / SPLITS).is_file():
        return
    splits = sorted(path.parent.name for path in folder.glob(f"*/{STATE}"))
    if len(splits) > 1:
        raise InputError(
            f"{folder} holds the splits {', '.join(splits)} of a data set: name the folder of one, "
            f"e.g. {folder / splits[-1]}"
        )


def data_files(files: Sequence[Path]) -> list[Path]:
    """The files that hold data; in a saved data set, those that its description lists.

    Parameters
    ----------
    files
        All files of a folder and of the folders in it.

    Raises
    ------
    InputError
        When a description is damaged.
    """
    homes = {file.parent for file in files if file.suffix == ".arrow"}
    states = {file.parent: file for file in files if file.name == STATE and file.parent in homes}
    listed = {home: _listed(state) for home, state in states.items()}
    outer = {home.parent / SPLITS for home in listed}
    return [
        file
        for file in files
        if file not in outer
        and (file.parent not in listed or file.name in listed[file.parent] or not _is_of_set(file))
    ]


def _is_of_set(file: Path) -> bool:
    """Whether a file in the folder of a data set belongs to it: data, a cache, a description."""
    return file.suffix == ".arrow" or file.name in DESCRIPTIONS


def _listed(state: Path) -> set[str]:
    held = read_json(state)
    try:
        return {str(entry["filename"]) for entry in held["_data_files"]}
    except (KeyError, TypeError) as error:
        raise InputError(f"{state} is damaged: it lists no _data_files") from error

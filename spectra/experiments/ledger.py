"""Results of an experiment, cell by cell, so that a killed one goes on where it was."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spectra.store.durable import write_file
from spectra_data.errors import InputError
from spectra_data.integrity import sealed, unsealed

Row = dict[str, Any]


class Ledger:
    """The cells that were measured, in a folder.

    Parameters
    ----------
    folder
        Where ``results.json`` lies; made if need be.
    settings
        Everything that results depend on.

    Raises
    ------
    InputError
        When the folder holds results of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / "results.json"
        self.settings = json.loads(json.dumps(settings))
        self.rows: list[Row] = []
        if not self.path.exists():
            return
        try:
            held = unsealed(self.path.read_bytes())
            known, self.rows = held["settings"], list(held["rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.path} is damaged: remove it, or name another folder"
            ) from error
        if known != self.settings:
            differing = sorted(
                k for k in known | self.settings if known.get(k) != self.settings.get(k)
            )
            raise InputError(
                f"{folder} holds results of other settings ({', '.join(differing)}): name another "
                "folder by --out"
            )

    def cell(self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> Row:
        """A cell's row: what was measured before, or measured now and kept."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        row = {**key, **measure()}
        self.rows.append(row)
        content = {"settings": self.settings, "rows": self.rows}
        write_file(self.path, sealed(content))
        return row

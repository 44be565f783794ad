"""Results of experiments, cell by cell, so that a killed experiment resumes where it was."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spectra.store.durable import write_file
from spectra_data.errors import InputError
from spectra_data.integrity import sealed, unsealed

Row = dict[str, Any]
FORMER = {
    "data", "calibration", "seq_len", "windows", "calibration_windows", "errs", "budgets",
    "memory_errs", "contexts", "pruned_errs", "sparsities", "pruners", "stored", "batch_size",
    "seed",
}  # fmt: skip
"""Options that earlier versions wrote with the results of every experiment, used or not."""


class Ledger:
    """Measured cells, in a file.

    Parameters
    ----------
    path
        The file; the first cell creates it.
    settings
        All settings that results depend on.
    remove
        Path to remove if the file is damaged; by default the file alone.

    Raises
    ------
    InputError
        When the file is damaged, or holds results of other settings.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], *, remove: Path | None = None
    ) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))
        self.rows: list[Row] = []
        if not path.exists():
            return
        try:
            known, self.rows = _read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is damaged: remove {remove or 'it'}, or name another folder"
            ) from error
        known = {k: v for k, v in known.items() if k in self.settings or k not in FORMER}
        if known != self.settings:
            differing = sorted(
                k for k in known | self.settings if known.get(k) != self.settings.get(k)
            )
            raise InputError(
                f"{path.parent} holds results of other settings ({', '.join(differing)}): name "
                "another folder with --out"
            )

    def cell(self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> Row:
        """Row of a cell: the one measured before, or one measured now and saved."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        row = {**key, **measure()}
        self.rows.append(row)
        write_results(self.path, self.settings, self.rows)
        return row


def write_results(
    path: Path, settings: Mapping[str, Any], rows: Sequence[Row], **more: Any
) -> None:
    """Write rows with the settings that they depend on, and a hash of everything."""
    write_file(path, sealed({"settings": settings, "rows": rows, **more}))


def _read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Settings and rows of a file."""
    held = unsealed(path.read_bytes())
    if "made_of" in held:  # a run's file from an earlier version
        return dict(held["made_of"]), [held["row"]]
    return dict(held["settings"]), list(held["rows"])

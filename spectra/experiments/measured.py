"""Experiments that measure cells one after the other, and save each at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectra.experiments.experiment import Experiment, Outcome
from spectra.experiments.ledger import Ledger, Row
from spectra.experiments.writing import Point, Shape, written
from spectra.machine.progress import Progress, silent
from spectra.store.destination import make_folder, require_writable
from spectra.store.lock import locked
from spectra_data.partial import remove_leftovers


@dataclass(frozen=True)
class Setup:
    """Setup of a measurement: a checkpoint, options, a folder and a device."""

    checkpoint: str
    settings: Any
    """An instance of the experiment's settings."""
    folder: Path
    device: str
    progress: Progress


@dataclass(frozen=True)
class MeasuredExperiment(Experiment):
    """An experiment whose cells are in ``results.json``."""

    rows: Callable[[Setup, Ledger], Iterator[Row]]
    """Function that measures every cell missing from the ledger."""
    label: Callable[[Row], str] = lambda row: str(row["recipe"])
    """Label of a row's line in the figure."""

    def run(
        self,
        checkpoint: str,
        settings: Any,
        folder: Path,
        *,
        device: str = "cpu",
        progress: Progress = silent,
    ) -> Outcome:
        """Measure the missing cells, and write the results.

        Raises
        ------
        InputError
            When the folder holds results of other settings, or another process writes to it.
        """
        from spectra.checkpoint.checkpoint import open_checkpoint

        require_writable(folder, folder=True)
        known = {"experiment": self.name, "checkpoint": checkpoint, "device": device}
        known |= settings.to_dict()
        known |= {"identity": open_checkpoint(checkpoint).identity}
        known |= {"texts": settings.fingerprints()}
        make_folder(folder)
        with locked(folder):
            remove_leftovers(folder)
            ledger = Ledger(folder / "results.json", known)
            setup = Setup(checkpoint, settings, folder, device, progress)
            rows = list(self.rows(setup, ledger))
            shape = Shape(self.name, self.presentation, list(self.points(rows)))
            names = (checkpoint, *([settings.data] if "data" in settings.texts() else []))
            subtitle = ", ".join(Path(name).name for name in names)
            return written(shape, rows, folder, subtitle, ledger.path)

    def points(self, rows: Sequence[Row]) -> Iterator[Point]:
        """Points of the figure."""
        x, y = self.presentation.x, self.presentation.y
        for row in rows:
            if y in row:
                yield row[x], row[y], self.label(row)

"""An experiment: its options, its run, and its outcome."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectra.experiments.ledger import Row
from spectra.experiments.settings import Settings
from spectra.machine.progress import Progress, silent


@dataclass(frozen=True)
class Outcome:
    """Results of an experiment, and the files that hold them."""

    title: str
    rows: tuple[Row, ...]
    table: tuple[Row, ...]
    """Rows to print."""
    columns: tuple[str, ...]
    """Columns of the table."""
    files: tuple[Path, ...]
    claims: tuple[str, ...] = ()
    """Claims of the paper, and the measurements for or against them."""
    failed: tuple[str, ...] = ()
    """Cells that could not be measured, with the reason."""


@dataclass(frozen=True)
class Presentation:
    """Presentation of the results: a table and a figure."""

    title: str
    columns: tuple[str, ...]
    """Columns of the table; ``peak`` stands for all columns that begin with ``peak_``."""
    x: str
    y: str
    """Columns on the axes of the figure."""
    x_title: str = "effective rank reduction"
    log: bool = True
    bounds: tuple[float, float] | None = None
    """Bounds of y, so that noise does not fill the figure."""


@dataclass(frozen=True)
class Experiment(ABC):
    """An experiment that the command runs by its name."""

    name: str
    """Name of its files, and its name in the registry."""
    settings: type[Settings]
    """Its options: those that it uses, and no others."""
    presentation: Presentation

    @abstractmethod
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

        Parameters
        ----------
        checkpoint
            A Hugging Face folder, a GGUF file, or a hub name.
        settings
            An instance of ``self.settings``; saved with the results.
        folder
            Folder of the results.
        device
            Device on which the model runs.
        progress
            Called with a stage, the number of its steps done, and the number of all.

        Raises
        ------
        InputError
            When the folder cannot be written, another process writes to it, or a requirement is
            missing.
        """

"""An experiment: its options, how it is run, what it finds."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectra.experiments.ledger import Row
from spectra.experiments.settings import Settings
from spectra.machine.progress import Progress, silent


@dataclass(frozen=True)
class Outcome:
    """What an experiment found, and where it lies."""

    title: str
    rows: tuple[Row, ...]
    table: tuple[Row, ...]
    """What is printed of them."""
    columns: tuple[str, ...]
    """Of the table."""
    files: tuple[Path, ...]
    claims: tuple[str, ...] = ()
    """What the paper says, and what was measured."""
    failed: tuple[str, ...] = ()
    """What could not be measured, with the reason."""


@dataclass(frozen=True)
class Presentation:
    """How what was measured is shown: a table and a figure."""

    title: str
    columns: tuple[str, ...]
    """Of the table; ``peak`` stands for all columns that begin so."""
    x: str
    y: str
    """What the figure draws against what."""
    x_title: str = "effective rank reduction"
    log: bool = True
    bounds: tuple[float, float] | None = None
    """Of y, so that noise does not fill the figure."""


@dataclass(frozen=True)
class Experiment(ABC):
    """One that the command runs by its name."""

    name: str
    """Of its files; the registry has it under the same."""
    settings: type[Settings]
    """Its own options: those that it uses, and no others."""
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
        """Measure what is not there yet, and write what was found.

        Parameters
        ----------
        checkpoint
            A Hugging Face folder, a GGUF file, or a hub name.
        settings
            An instance of ``self.settings``; written beside the results.
        folder
            Where results are kept.
        device
            Where the model runs.
        progress
            Called with a stage, what is done of it, and of how many.

        Raises
        ------
        InputError
            When the folder cannot be written, another process writes to it, or something that is
            needed is missing.
        """

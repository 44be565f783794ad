"""Measurements of compressed checkpoints, kept next to the spectra they come from.

A row of the group ``evaluations`` is one measurement: how far and how the checkpoint was
compressed, and the perplexity on some text.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import xarray as xr

from spectra.storages.registry import DEFAULT_STORAGE
from spectra.store.derived import held, write_group
from spectra.store.location import Location
from spectra.store.reader import open_store, takes_store
from spectra_data.errors import InputError

GROUP = "evaluations"


@dataclass(frozen=True)
class Evaluation:
    """One measurement of a compressed checkpoint."""

    err: float
    """Effective rank reduction of its map."""
    budget: float
    """Fraction of block parameters stored."""
    perplexity: float
    allocation: str
    """Method that chose the ranks, e.g. ``welore``."""
    compression: str = "svd"
    """Method that factorised the matrices."""
    storage: str = DEFAULT_STORAGE
    data: str = ""
    """Name of the text that it was evaluated on."""

    def __post_init__(self) -> None:
        for name in ("err", "budget"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is from 0 to 1, not {getattr(self, name)}")
        if not (math.isfinite(self.perplexity) and self.perplexity > 0):
            raise InputError(f"a perplexity is a positive number, not {self.perplexity}")


def add_evaluation(store: Location, evaluation: Evaluation) -> None:
    """Add a measurement to a store.

    Raises
    ------
    InputError
        When there is no such store, it cannot be written, or another process keeps writing to it.
    """
    with held(store):  # no measurement is added between reading and writing
        found = [*evaluations(open_store(store)), evaluation]
        write_group(store, GROUP, _dataset(found))


def _dataset(found: list[Evaluation]) -> xr.Dataset:
    columns = {f.name: [getattr(one, f.name) for one in found] for f in fields(Evaluation)}
    dataset = xr.Dataset(
        {
            name: ("evaluation", np.array(values, object if f.type is str else float))
            for (name, values), f in zip(columns.items(), fields(Evaluation), strict=True)
        }
    )
    dataset["perplexity"].attrs = {"long_name": "perplexity", "units": "1"}
    return dataset


@takes_store
def evaluations(run: xr.DataTree) -> list[Evaluation]:
    """The measurements that an opened store holds, in the order in which they were added."""
    if GROUP not in run.children:
        return []
    held = run[GROUP].to_dataset().compute()
    columns = {f.name: held[f.name].to_numpy().tolist() for f in fields(Evaluation)}
    return [
        Evaluation(**dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    ]

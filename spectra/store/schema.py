"""What is in a store: groups, arrays, dimensions, and the rule that tells which rows exist.

A row of `spectra` and `sketches` is a snapshot, and exists once ``spectra/step`` holds its step; a
row of `train` is a training step, and exists once ``train/train_step`` holds it. Both are written
after everything else of their row. The arrays of a row are one chunk each, so a snapshot is a
handful of files and none of an earlier one is touched.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spectra.matrices import Matrix

SCHEMA = "spectra/1"
UNSET = -1
SPECTRA = {
    "weight": "singular values of the weight",
    "gradient": "singular values of the gradient on the probe batch",
    "update": "singular values of the last optimizer update",
}
TRAIN = {
    "loss": ("training loss, before the step", "nat"),
    "validation_loss": ("loss on the validation part, after the step, where evaluated", "nat"),
    "learning_rate": ("learning rate of the step", "1"),
    "gradient_norm": ("norm of the whole gradient, before clipping", "1"),
    "clip_factor": ("factor by which clipping scaled the gradient", "1"),
    "tokens": ("tokens seen, this step included", "token"),
    "tokens_per_second": ("training speed since the row before, recording included", "token/s"),
}
BLOCK = 64
"""Rows by which an array grows when nobody said how many there will be."""
TRAIN_CHUNK = 4096


@dataclass(frozen=True)
class Variable:
    """One array of a store."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    fill: float | int | str
    chunks: tuple[int, ...]
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        width = 32 if self.dtype == "string" else np.dtype(self.dtype).itemsize
        return int(np.prod(self.shape, dtype=np.int64)) * width


@dataclass(frozen=True)
class Layout:
    """The sizes that decide a store's arrays."""

    matrices: tuple[Matrix, ...]
    snapshots: int | None = None
    """How many snapshots there will be; None where nobody knows, and arrays grow by blocks."""
    train_steps: int | None = None
    """How many optimizer steps there will be; None likewise."""
    spectra: tuple[str, ...] = tuple(SPECTRA)
    sketch: int = 0
    """Components of a gradient sketch; 0 for no sketches."""

    def groups(self) -> dict[str, list[Variable]]:
        """Every array by group, in the order of writing; what commits a row comes last."""
        groups = {"spectra": self._spectra(), "train": self._train()}
        if self.sketch:
            groups["sketches"] = self._sketches()
        return groups

    @property
    def nbytes(self) -> int:
        """Size of all arrays before compression, at their full or first size."""
        return sum(v.nbytes for variables in self.groups().values() for v in variables)

    def _spectra(self) -> list[Variable]:
        rows, count = self.snapshots or BLOCK, len(self.matrices)
        width = max(m.full_rank for m in self.matrices)
        attrs = {
            "units": "1",
            "padding": "NaN beyond min(rows, cols)",
            "floor": "values below about 1e-8 of the first are rounding",
        }
        return [
            *self._matrix_coordinates(),
            *(
                Variable(
                    name,
                    ("step", "matrix", "index"),
                    (rows, count, width),
                    "float32",
                    np.nan,
                    (1, count, width),
                    {"long_name": SPECTRA[name], **attrs},
                )
                for name in self.spectra
            ),
            _step(rows, "step", "optimizer steps done when the snapshot was taken"),
        ]

    def _sketches(self) -> list[Variable]:
        rows, count = self.snapshots or BLOCK, len(self.matrices)
        return [
            *self._matrix_coordinates(),
            Variable(
                "gradient",
                ("step", "matrix", "component"),
                (rows, count, self.sketch),
                "float32",
                np.nan,
                (1, count, self.sketch),
                {"long_name": "random projection of the gradient on the probe batch", "units": "1"},
            ),
            _step(rows, "step", "optimizer steps done when the snapshot was taken"),
        ]

    def _train(self) -> list[Variable]:
        rows = self.train_steps or TRAIN_CHUNK
        chunk = (min(rows, TRAIN_CHUNK),)
        metrics = [
            Variable(
                name,
                ("train_step",),
                (rows,),
                "float64",
                np.nan,
                chunk,
                {"long_name": long_name, "units": units},
            )
            for name, (long_name, units) in TRAIN.items()
        ]
        return [
            *metrics,
            _step(rows, "train_step", "number of the optimizer step, from 1", chunk[0]),
        ]

    def _matrix_coordinates(self) -> list[Variable]:
        count = (len(self.matrices),)
        return [
            Variable("matrix", ("matrix",), count, "string", "", count, {"long_name": "full name"}),
            Variable("role", ("matrix",), count, "string", "", count, {"long_name": "role"}),
            *(
                Variable(name, ("matrix",), count, "int64", UNSET, count, {"long_name": long_name})
                for name, long_name in (
                    ("layer", "index of the block"),
                    ("rows", "rows of the matrix"),
                    ("cols", "columns of the matrix"),
                )
            ),
        ]

    def matrix_values(self, name: str) -> list[str] | list[int]:
        """Values of the coordinate `name` along the matrices."""
        field_name = "name" if name == "matrix" else name
        return [getattr(m, field_name) for m in self.matrices]


def _step(rows: int, name: str, long_name: str, chunk: int | None = None) -> Variable:
    return Variable(
        name, (name,), (rows,), "int64", UNSET, (chunk or rows,), {"long_name": long_name}
    )

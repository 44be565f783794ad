"""Which arrays a store has, and how large they are.

The arrays of a snapshot are one chunk each, or for the large ones (raw gradients, subspaces) one
shard that holds a chunk for every matrix: a snapshot is a handful of files, no file of an earlier
one is touched, and one matrix is read over all snapshots without reading the others.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectra.matrices import Matrix
from spectra.quantities import DEFAULT, GRADIENT, QUANTITIES
from spectra.store.schema import BFLOAT16_NAN, FLAGS, TRAIN, UNSET, Status, Variable
from spectra_data.errors import InputError
from spectra_data.fields import converted, plain

BLOCK = 64
"""Rows by which an array grows if their final number is unknown."""
TRAIN_CHUNK = 4096
SHARD_BYTES = 1 << 28
"""Size of a shard, which is assembled in memory; large models have several per snapshot."""
CHUNK_BYTES = 1 << 22
PIECE_BYTES = 1 << 20
ERRORS = "standard errors of the singular values of the weight"


@dataclass(frozen=True)
class Contents:
    """Contents of a snapshot, each with its own switch."""

    spectra: tuple[str, ...] = DEFAULT
    """Quantities whose singular values are recorded, see `spectra.quantities.QUANTITIES`."""
    sketch: int = 4096
    """Components of a sketch of the probe gradient; 0 for none."""
    gradients: bool = False
    """Whether to record the probe gradients themselves, in bfloat16."""
    subspaces: int = 0
    """Rank of the leading left and right singular subspaces of the probe gradient; 0 for none."""
    source: bool = False
    """Whether to record the hash of each weight's bytes (scans)."""
    errors: bool = False
    """Whether to record standard errors of the weights' singular values (approximate scans)."""

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.spectra if kind not in QUANTITIES]:
            raise InputError(f"no spectra of {unknown[0]!r}; there are: {', '.join(QUANTITIES)}")
        if self.sketch < 0:
            raise InputError(f"a sketch has at least 0 components, not {self.sketch}")
        if self.subspaces < 0:
            raise InputError(f"a subspace has a rank of at least 0, not {self.subspaces}")
        ordered = tuple(kind for kind in QUANTITIES if kind in self.spectra)
        object.__setattr__(self, "spectra", ordered)

    @property
    def uses_probe(self) -> bool:
        """Whether the gradient on the probe batch is needed."""
        return GRADIENT in self.spectra or bool(self.sketch or self.gradients or self.subspaces)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Quantities that must be available of every matrix."""
        needed = {*self.spectra, GRADIENT} if self.uses_probe else {*self.spectra}
        return tuple(kind for kind in QUANTITIES if kind in needed)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of everything that is recorded; ``status/code`` has a column for each."""
        extras = {
            "sketch": self.sketch,
            "raw_gradient": self.gradients,
            "subspaces": self.subspaces,
        }
        return (*self.spectra, *(name for name, wanted in extras.items() if wanted))

    def only(self, parts: Collection[str]) -> "Contents":
        """The contents if only some of the parts are recorded."""
        return Contents(
            tuple(kind for kind in self.spectra if kind in parts),
            sketch=self.sketch if "sketch" in parts else 0,
            gradients=self.gradients and "raw_gradient" in parts,
            subspaces=self.subspaces if "subspaces" in parts else 0,
        )

    def without_probe(self) -> "Contents":
        """The contents if there is no probe batch."""
        return self.only([kind for kind in self.spectra if kind != GRADIENT])

    def to_dict(self) -> dict[str, Any]:
        fields = plain(self)
        scans = ("source", "errors")
        return {name: v for name, v in fields.items() if v or name not in scans}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Contents":
        """Rebuild from the result of `to_dict`."""
        return converted("contents", fields, cls)


@dataclass(frozen=True)
class Layout:
    """The sizes that determine a store's arrays."""

    matrices: tuple[Matrix, ...]
    snapshots: int | None = None
    """Number of snapshots; None if unknown, and arrays then grow by blocks."""
    train_steps: int | None = None
    """Number of optimizer steps; None if unknown."""
    contents: Contents = Contents()

    def __post_init__(self) -> None:
        smallest = min(m.full_rank for m in self.matrices)
        if self.contents.subspaces > smallest:
            raise InputError(
                f"no subspaces of rank {self.contents.subspaces}: a matrix has only {smallest} "
                "singular values; lower the rank, or choose matrices"
            )

    @property
    def width(self) -> int:
        """Largest number of singular values of any quantity and matrix."""
        names = self.contents.spectra or ("weight",)
        return max(QUANTITIES[n].length(m.rows, m.cols) for n in names for m in self.matrices)

    @property
    def rows(self) -> int:
        """Initial rows of the arrays of snapshots."""
        return self.snapshots or BLOCK

    def groups(self) -> dict[str, list[Variable]]:
        """All arrays by group, in the order of writing; what commits a row comes last."""
        groups = {
            "spectra": self._spectra(),
            "status": self._status(),
            "train": self._train(),
        }
        if self.contents.source:
            groups["source"] = self._source()
        if self.contents.sketch:
            groups["sketches"] = self._sketches()
        if self.contents.gradients:
            groups["gradients"] = [self._step()]
            groups |= {
                f"gradients/{rows}x{cols}": self._gradients(members)
                for (rows, cols), members in self._by_shape().items()
            }
        if self.contents.subspaces:
            groups["subspaces"] = self._subspaces()
        return groups

    def snapshot_arrays(self) -> dict[str, Variable]:
        """The arrays that have a row for every snapshot, by path; without the steps."""
        return {
            f"{group}/{variable.name}": variable
            for group, variables in self.groups().items()
            for variable in variables
            if variable.dims[0] == "step" and variable.name != "step"
        }

    def step_arrays(self) -> list[str]:
        """Paths of the arrays that announce a snapshot, in the order of writing."""
        groups = [g for g, vs in self.groups().items() if any(v.name == "step" for v in vs)]
        return [f"{group}/step" for group in sorted(groups, key=lambda g: g == "spectra")]

    def members(self, path: str) -> list[int]:
        """Numbers of the matrices that a snapshot array holds, in its order."""
        if not path.startswith("gradients/"):
            return list(range(len(self.matrices)))
        rows, _, cols = path.split("/")[1].partition("x")
        return self._by_shape()[int(rows), int(cols)]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by kind of content, before compression, for all snapshots or the first block."""
        sizes: dict[str, int] = {}
        for group, variables in self.groups().items():
            top = group.partition("/")[0]
            sizes[top] = sizes.get(top, 0) + sum(v.nbytes for v in variables)
        if self.contents.subspaces:  # padding compresses to nothing
            sides = sum(m.rows + m.cols for m in self.matrices)
            sizes["subspaces"] = self.rows * sides * self.contents.subspaces * 4
        return sizes

    @property
    def nbytes(self) -> int:
        """Size of all arrays before compression, at their full or first size."""
        return sum(self.sizes.values())

    def to_dict(self) -> dict[str, Any]:
        return plain(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Layout":
        """Rebuild from the result of `to_dict`."""
        return converted("layout", fields, cls)

    def _spectra(self) -> list[Variable]:
        count = len(self.matrices)
        width = self.width
        attrs = {
            "units": "1",
            "padding": "NaN beyond min(rows, cols)",
            "floor": "values below about 1e-8 of the first are rounding",
        }
        described = {name: QUANTITIES[name].long_name for name in self.contents.spectra}
        if self.contents.errors:
            described["weight_error"] = ERRORS
            del attrs["floor"]
            attrs["approximate"] = "from random probes; standard errors in weight_error"
        return [
            *_coordinates(range(count)),
            *(
                Variable(
                    name,
                    ("step", "matrix", "index"),
                    (self.rows, count, width),
                    # float64 for scans: float64 checkpoints have values beyond float32
                    "float64" if self.contents.source else "float32",
                    np.nan,
                    (1, self._matrices_in_chunk(width), width),
                    attrs={"long_name": long_name, **attrs},
                )
                for name, long_name in described.items()
            ),
            self._step(),
        ]

    def _status(self) -> list[Variable]:
        count, parts = len(self.matrices), self.contents.parts
        return [
            *_coordinates(range(count)),
            Variable(
                "part",
                ("part",),
                (len(parts),),
                "string",
                "",
                (len(parts),),
                attrs={"long_name": "what is recorded"},
            ),
            Variable(
                "code",
                ("step", "matrix", "part"),
                (self.rows, count, len(parts)),
                "uint8",
                int(Status.UNSET),
                (1, count, len(parts)),
                attrs={"long_name": "why a part of a snapshot is there or missing", **FLAGS},
            ),
            self._step(),
        ]

    def _source(self) -> list[Variable]:
        count = len(self.matrices)
        return [
            *_coordinates(range(count)),
            Variable(
                "sha256",
                ("step", "matrix", "byte"),
                (self.rows, count, 32),
                "uint8",
                0,
                (1, count, 32),
                attrs={"long_name": "SHA-256 of the weight's dtype, shape and bytes"},
            ),
            self._step(),
        ]

    def _matrices_in_chunk(self, width: int) -> int:
        """All of them; in a scan, which is written little by little, as many as make 1 MB."""
        count = len(self.matrices)
        return min(count, max(1, PIECE_BYTES // (8 * width))) if self.contents.source else count

    def _sketches(self) -> list[Variable]:
        count, components = len(self.matrices), self.contents.sketch
        return [
            *_coordinates(range(count)),
            Variable(
                "gradient",
                ("step", "matrix", "component"),
                (self.rows, count, components),
                "float32",
                np.nan,
                (1, count, components),
                attrs={
                    "long_name": "random projection of the gradient on the probe batch",
                    "units": "1",
                    "cosine_standard_error": f"at most {components**-0.5:.4f}",
                },
            ),
            self._step(),
        ]

    def _gradients(self, members: list[int]) -> list[Variable]:
        rows, cols = self.matrices[members[0]].rows, self.matrices[members[0]].cols
        return [
            *_coordinates(members),
            _sharded(
                "gradient",
                ("step", "matrix", "row", "col"),
                (self.rows, len(members), rows, cols),
                "uint16",
                BFLOAT16_NAN,
                {
                    "long_name": "gradient on the probe batch",
                    "units": "1",
                    "bits": "bfloat16: the upper half of a float32",
                },
            ),
        ]

    def _subspaces(self) -> list[Variable]:
        count, rank = len(self.matrices), self.contents.subspaces
        sides = {
            "left": ("row", max(m.rows for m in self.matrices)),
            "right": ("col", max(m.cols for m in self.matrices)),
        }
        return [
            *_coordinates(range(count)),
            *(
                _sharded(
                    f"gradient_{side}",
                    ("step", "matrix", dim, "component"),
                    (self.rows, count, size, rank),
                    "float32",
                    np.nan,
                    {
                        "long_name": f"leading {side} singular vectors of the probe gradient",
                        "units": "1",
                        "padding": f"NaN beyond the matrix's {dim}s",
                    },
                )
                for side, (dim, size) in sides.items()
            ),
            self._step(),
        ]

    def _train(self) -> list[Variable]:
        rows = self.train_steps or TRAIN_CHUNK
        chunk = min(rows, TRAIN_CHUNK)
        metrics = [
            Variable(
                name,
                ("train_step",),
                (rows,),
                "float64",
                np.nan,
                (chunk,),
                attrs={"long_name": long_name, "units": units},
            )
            for name, (long_name, units) in TRAIN.items()
        ]
        step = _step(rows, "train_step", "number of the optimizer step, from 1", chunk)
        return [*metrics, step]

    def _step(self) -> Variable:
        return _step(self.rows, "step", "optimizer steps done when the snapshot was taken")

    def _by_shape(self) -> dict[tuple[int, int], list[int]]:
        shapes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, matrix in enumerate(self.matrices):
            shapes[matrix.rows, matrix.cols].append(number)
        return dict(shapes)

    def coordinate_values(self, group: str, name: str) -> list[str] | list[int]:
        """Values of a coordinate: of the matrices that a group holds, or the parts recorded."""
        if name == "part":
            return list(self.contents.parts)
        field_name = "name" if name == "matrix" else name
        return [getattr(self.matrices[i], field_name) for i in self.members(f"{group}/{name}")]


def _coordinates(members: Sequence[int]) -> list[Variable]:
    count = (len(members),)
    described: dict[str, tuple[str, int | str, str]] = {
        "matrix": ("string", "", "full name"),
        "role": ("string", "", "role"),
        "layer": ("int64", UNSET, "index of the block"),
        "rows": ("int64", UNSET, "rows of the matrix"),
        "cols": ("int64", UNSET, "columns of the matrix"),
    }
    return [
        Variable(name, ("matrix",), count, dtype, fill, count, attrs={"long_name": long_name})
        for name, (dtype, fill, long_name) in described.items()
    ]


def _sharded(
    name: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: str,
    fill: float | int,
    attrs: dict[str, Any],
) -> Variable:
    """An array with a chunk for every matrix, and as few shards per snapshot as memory allows.

    Large matrices are several chunks of rows, so that part of one can be read over all snapshots.
    """
    matrix_bytes = int(np.prod(shape[2:])) * np.dtype(dtype).itemsize
    chunks = (1, 1, _rows_of_chunk(shape[2], matrix_bytes), *shape[3:])
    in_shard = min(shape[1], max(1, SHARD_BYTES // matrix_bytes))
    return Variable(name, dims, shape, dtype, fill, chunks, (1, in_shard, *shape[2:]), attrs)


def _rows_of_chunk(rows: int, matrix_bytes: int) -> int:
    """Most rows that divide a matrix evenly within half to all of `CHUNK_BYTES`; else all rows."""
    wanted = max(1, rows * CHUNK_BYTES // max(matrix_bytes, 1))
    if wanted >= rows:
        return rows
    divisors = [r for r in range(wanted, wanted // 2, -1) if rows % r == 0]
    return divisors[0] if divisors else rows


def _step(rows: int, name: str, long_name: str, chunk: int | None = None) -> Variable:
    return Variable(
        name, (name,), (rows,), "int64", UNSET, (chunk or rows,), attrs={"long_name": long_name}
    )

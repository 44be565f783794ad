"""Measurements of a snapshot's matrices: pure functions from tensors to arrays.

A process measures its own matrices; `assemble` combines the shares of all processes into the row
that is written.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from spectra.linalg import leading_subspaces, singular_values_of_many
from spectra.machine.cores import map_matrices
from spectra.quantities import GRADIENT
from spectra.recording.sketch import CountSketch
from spectra.recording.timings import Timings
from spectra.store.layout import Contents, Layout
from spectra.store.schema import Status, out_of_range

Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]
Codes = npt.NDArray[np.uint8]
Captured = torch.Tensor | Status
"""A matrix (rows, cols), or why it is missing."""


class Measure:
    """Measures a process's own matrices of a store."""

    def __init__(
        self, layout: Layout, members: Sequence[int], sketch: CountSketch | None, timings: Timings
    ) -> None:
        self.layout = layout
        self.members = list(members)
        """Numbers of the matrices."""
        self._sketch, self._timings = sketch, timings
        self._width = layout.width

    def __call__(self, kind: str, matrices: Sequence[Captured], contents: Contents) -> Arrays:
        """Measure one kind of matrices.

        Parameters
        ----------
        kind
            Name of a quantity.
        matrices
            The process's own, in the order of `members`.
        contents
            Contents of this snapshot.

        Returns
        -------
        Arrays by their path in the store, with a row for every own matrix, and ``status/PART``
        (matrix,) for every part that was measured.
        """
        arrays: Arrays = {}
        if kind in contents.spectra:
            with self._timings.measure("decomposition", kind):
                spectra, statuses = self._spectra(matrices)
            arrays[f"spectra/{kind}"] = spectra
            arrays[f"status/{kind}"] = statuses
        if kind != GRADIENT:
            return arrays
        largest = {i: _largest(m) for i, m in enumerate(matrices) if isinstance(m, torch.Tensor)}
        if contents.sketch and self._sketch:
            with self._timings.measure("sketch", "sketch"):
                sketches, statuses = self._sketches(matrices, largest, self._sketch)
            arrays["sketches/gradient"] = sketches
            arrays["status/sketch"] = statuses
        if contents.subspaces:
            with self._timings.measure("subspaces", "subspaces"):
                arrays |= self._subspaces(matrices, contents.subspaces)
            # directions have no scale that could be too large or too small
            broken = {i: Status.NOT_FINITE for i, value in largest.items() if np.isnan(value)}
            arrays["status/subspaces"] = _statuses(matrices, broken)
        if contents.gradients:
            with self._timings.measure("raw gradients", "raw_gradient"):
                raw, statuses = self._raw(matrices, largest)
            arrays |= raw
            arrays["status/raw_gradient"] = statuses
        return arrays

    def _spectra(self, matrices: Sequence[Captured]) -> tuple[npt.NDArray[np.float32], Codes]:
        array = np.full((len(matrices), self._width), np.nan, np.float32)
        values = singular_values_of_many([m for m in matrices if isinstance(m, torch.Tensor)])
        found = dict(zip(_present(matrices), values, strict=True))
        unfit = _unfit({i: float(spectrum[0]) for i, spectrum in found.items()})
        for i in found.keys() - unfit.keys():
            array[i, : len(found[i])] = found[i]
        return array, _statuses(matrices, unfit)

    def _sketches(
        self, matrices: Sequence[Captured], largest: Mapping[int, float], sketch: CountSketch
    ) -> tuple[npt.NDArray[np.float32], Codes]:
        array = np.full((len(matrices), sketch.components), np.nan, np.float32)
        unfit = _unfit(largest)
        for i in _present(matrices):
            matrix = matrices[i]
            assert isinstance(matrix, torch.Tensor)
            components = sketch(matrix)
            if i not in unfit and not torch.isfinite(components.float()).all():
                unfit[i] = Status.OUT_OF_RANGE  # sums can be, even if no entry is
            if unfit.get(i) is not Status.OUT_OF_RANGE:
                array[i] = components.float().cpu().numpy()
        return array, _statuses(matrices, unfit)

    def _subspaces(self, matrices: Sequence[Captured], rank: int) -> Arrays:
        arrays = _empty(self.layout, "subspaces/", self.members)
        present = [m for m in matrices if isinstance(m, torch.Tensor)]
        pairs = map_matrices(lambda matrix: leading_subspaces(matrix, rank), present)
        for i, (left, right) in zip(_present(matrices), pairs, strict=True):
            arrays["subspaces/gradient_left"][i, : len(left)] = left
            arrays["subspaces/gradient_right"][i, : len(right)] = right
        return arrays

    def _raw(
        self, matrices: Sequence[Captured], largest: Mapping[int, float]
    ) -> tuple[Arrays, Codes]:
        arrays = _empty(self.layout, "gradients/", self.members)
        # rounding up to bfloat16 may make a number too large
        rounded = {i: float(torch.tensor(value).bfloat16()) for i, value in largest.items()}
        unfit = _unfit({i: max(value, rounded[i]) for i, value in largest.items()})
        for path, array in arrays.items():
            own = [m for m in self.layout.members(path) if m in self.members]
            for i, member in enumerate(own):
                index = self.members.index(member)
                matrix = matrices[index]
                if isinstance(matrix, torch.Tensor) and unfit.get(index) is not Status.OUT_OF_RANGE:
                    array[i] = bfloat16_bits(matrix)
        return arrays, _statuses(matrices, unfit)


def bfloat16_bits(matrix: torch.Tensor) -> npt.NDArray[np.uint16]:
    """Bits of a matrix rounded to bfloat16."""
    short = matrix.detach().to("cpu", torch.bfloat16).contiguous()
    return short.view(torch.int16).numpy().view(np.uint16)


def assemble(
    layout: Layout, contents: Contents, shares: Sequence[tuple[Sequence[int], Arrays]]
) -> Arrays:
    """The row of a snapshot from the shares of all processes: (members, arrays of `Measure`)."""
    row: Arrays = {}
    for path in {path for _, arrays in shares for path in arrays if "status/" not in path}:
        numbers = {member: i for i, member in enumerate(layout.members(path))}
        parts = [
            ([numbers[m] for m in members if m in numbers], arrays[path])
            for members, arrays in shares
            if path in arrays
        ]
        if len(parts) == 1 and len(parts[0][0]) == len(numbers):
            row[path] = parts[0][1]
            continue
        row[path] = _empty(layout, path, range(len(layout.matrices)))[path]
        for positions, part in parts:
            row[path][positions] = part
    row["status/code"] = _status_array(layout, contents, shares)
    return row


def bytes_by_part(row: Arrays) -> dict[str, float]:
    """Bytes of a row, by part of the snapshot."""
    parts = {"sketches": "sketch", "gradients": "raw_gradient", "subspaces": "subspaces"}
    sizes: dict[str, float] = {}
    for path, array in row.items():
        group, _, name = path.partition("/")
        if group != "status":
            part = parts.get(group, name)
            sizes[part] = sizes.get(part, 0.0) + array.nbytes
    return sizes


def _status_array(
    layout: Layout, contents: Contents, shares: Sequence[tuple[Sequence[int], Arrays]]
) -> npt.NDArray[np.uint8]:
    parts = layout.contents.parts
    array = np.full((len(layout.matrices), len(parts)), Status.SPARED, np.uint8)
    for members, arrays in shares:
        for column, part in enumerate(parts):
            if part in contents.parts:
                array[list(members), column] = arrays[f"status/{part}"]
    return array


def _empty(layout: Layout, prefix: str, members: Sequence[int]) -> Arrays:
    """Arrays of missing values for some matrices, for all paths with a prefix."""
    arrays: Arrays = {}
    for path, variable in layout.snapshot_arrays().items():
        if path.startswith(prefix):
            count = len(set(layout.members(path)) & set(members))
            shape = (count, *variable.shape[2:])
            arrays[path] = np.full(shape, variable.fill, variable.dtype)
    return arrays


def _present(matrices: Sequence[Captured]) -> list[int]:
    return [i for i, matrix in enumerate(matrices) if isinstance(matrix, torch.Tensor)]


def _statuses(matrices: Sequence[Captured], unfit: Mapping[int, Status]) -> Codes:
    """Status of each matrix; `unfit` are those that could not be measured, by number."""
    given = (m if isinstance(m, Status) else Status.MEASURED for m in matrices)
    return np.array([unfit.get(i, status) for i, status in enumerate(given)], np.uint8)


def _unfit(largest: Mapping[int, float]) -> dict[int, Status]:
    """Status of the matrices that cannot be stored, by number, from their largest magnitudes.

    Parameters
    ----------
    largest
        NaN if the matrix is not finite; infinite if its values are beyond float64, too.
    """
    broken = {i: Status.NOT_FINITE for i, value in largest.items() if np.isnan(value)}
    extreme = (i for i, value in largest.items() if out_of_range(value, np.float32))
    return broken | dict.fromkeys(extreme, Status.OUT_OF_RANGE)


def _largest(matrix: torch.Tensor) -> float:
    """The largest magnitude in a matrix; NaN if one is not finite."""
    value = float(matrix.abs().max())
    return value if np.isfinite(value) else np.nan

"""The snapshot that a scan is filling; it is announced only once all of it is on disk."""

import time
from collections.abc import Sequence

import numpy as np

from spectra.checkpoint.digests import combined_sha256
from spectra.matrices import Matrix
from spectra.scanning.decomposition import Spectrum
from spectra.store.schema import Status, out_of_range
from spectra.store.writer import StoreWriter

SECONDS = 1.0
"""Longest time between writes: all that a killed scan loses, besides matrices in progress."""


class Row:
    """The unannounced row of a store, written as spectra arrive."""

    def __init__(self, writer: StoreWriter, *, fresh: bool) -> None:
        self._writer = writer
        self._matrices = writer.layout.matrices
        self._numbers = {matrix.name: i for i, matrix in enumerate(self._matrices)}
        forms = {path: writer.form(path) for path in writer.layout.snapshot_arrays()}
        self._arrays = {
            path: np.full(variable.shape[1:], variable.fill, forms[path][0])
            if fresh
            else writer.piece(path)
            for path, variable in writer.layout.snapshot_arrays().items()
        }
        self._chunks = {path: chunks[1] for path, (_, chunks) in forms.items()}
        self._changed: set[int] = set(range(len(self._matrices))) if fresh else set()
        self._written = -np.inf
        if fresh:
            self.flush()

    @property
    def _status(self) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        return self._arrays["status/code"][:, 0]

    def missing(self) -> list[Matrix]:
        """The matrices that have not been decomposed yet."""
        return [m for m, code in zip(self._matrices, self._status, strict=True)
                if code == Status.UNSET]  # fmt: skip

    def unmeasured(self) -> list[tuple[Matrix, Status]]:
        """The decomposed matrices without values, with the reason of each."""
        return [(m, Status(code)) for m, code in zip(self._matrices, self._status, strict=True)
                if code in (Status.NOT_FINITE, Status.OUT_OF_RANGE)]  # fmt: skip

    def add(self, spectrum: Spectrum) -> None:
        """Add a matrix's spectrum; it is on disk within a second."""
        i = self._numbers[spectrum.matrix.name]
        values = self._arrays["spectra/weight"]
        status = Status.MEASURED
        if np.isnan(spectrum.values[0]):
            status = Status.NOT_FINITE
        elif out_of_range(float(spectrum.values[0]), values.dtype):
            status = Status.OUT_OF_RANGE
        else:
            values[i, : len(spectrum.values)] = spectrum.values
            if spectrum.errors is not None:
                self._arrays["spectra/weight_error"][i, : len(spectrum.errors)] = spectrum.errors
        self._arrays["source/sha256"][i] = np.frombuffer(spectrum.sha256, np.uint8)
        self._status[i] = status
        self._changed.add(i)
        if time.monotonic() - self._written > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write new spectra to disk; their status, which makes them valid, last."""
        changed = sorted(self._changed)
        paths = [path for path in self._arrays if path != "status/code"]
        for path in (*paths, "status/code"):
            size = self._chunks[path]
            for chunk in sorted({i // size for i in changed}):
                members = slice(chunk * size, min((chunk + 1) * size, len(self._matrices)))
                self._writer.write_piece(path, members, self._arrays[path][members])
        self._changed.clear()
        self._written = time.monotonic()

    def sha256(self) -> str:
        """One hash of all matrices."""
        digests = self._arrays["source/sha256"]
        return combined_sha256(
            {m.name: d.tobytes() for m, d in zip(self._matrices, digests, strict=True)}
        )


def of_missing(groups: Sequence[Sequence[Matrix]], missing: Sequence[Matrix]) -> list[list[Matrix]]:
    """The groups, with only the missing matrices."""
    wanted = set(missing)
    left = [[matrix for matrix in group if matrix in wanted] for group in groups]
    return [group for group in left if group]

"""The inputs of an allocation: matrices, their spectra, and the error of each rank."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spectra.matrices import Matrix
from spectra_data.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

Doubles = npt.NDArray[np.float64]
Ranks = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A matrix that may get less than its full rank."""

    matrix: Matrix
    values: Doubles
    """(full_rank,) singular values, descending."""

    @property
    def full_rank(self) -> int:
        return self.matrix.full_rank

    @cached_property
    def relative_errors(self) -> Doubles:
        r"""Relative errors :math:`\|W - W_r\|_F / \|W\|_F` of ranks r from 0: (full_rank + 1,).

        The tail of the squared singular values (Eckart and Young 1936); 0 for a zero matrix.
        """
        energies = np.square(self.values / max(self.values[0], np.finfo(float).tiny))
        tails = np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]])
        found: Doubles = np.sqrt(tails / tails[0]) if tails[0] > 0 else np.zeros_like(tails)
        return found

    def squared_errors(self, unit: float) -> Doubles:
        """Squared truncation errors in a given unit: (full_rank + 1,)."""
        energies = np.square(self.values / unit)
        return np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]])


@dataclass(frozen=True)
class Candidates:
    """The matrices of one snapshot, and a description of the checkpoint."""

    each: tuple[Candidate, ...]
    model: dict[str, Any]
    """Name, revision and sha256 of the checkpoint, as far as known."""
    format: str = "BF16"
    """Format in which the checkpoint is stored."""
    approximate: bool = False
    """Whether the spectra are approximate."""
    step: int = 0
    fused: dict[str, list[str]] = field(default_factory=dict)
    """Layers of the model that fuse several of the matrices, with the names of these."""
    weighted: bool = False
    """Whether the spectra are weighted by the statistics of a text (`spectra.compression`)."""

    @property
    def names(self) -> list[str]:
        return [candidate.matrix.name for candidate in self.each]

    @cached_property
    def full_ranks(self) -> Ranks:
        """(matrix,)."""
        return np.array([candidate.full_rank for candidate in self.each], np.int64)

    @cached_property
    def rows(self) -> Ranks:
        """(matrix,)."""
        return np.array([candidate.matrix.rows for candidate in self.each], np.int64)

    @cached_property
    def cols(self) -> Ranks:
        """(matrix,)."""
        return np.array([candidate.matrix.cols for candidate in self.each], np.int64)

    def relative_errors(self, ranks: Ranks) -> Doubles:
        """Relative truncation error of each matrix at these ranks: (matrix,)."""
        return np.array([c.relative_errors[r] for c, r in zip(self.each, ranks, strict=True)])


def candidates_of(run: "xr.DataTree", step: int | None = None) -> Candidates:
    """The matrices of a snapshot, as candidates.

    Parameters
    ----------
    run
        A run or a scan, as `spectra.open` returns it.
    step
        Step of the snapshot; the last by default.

    Raises
    ------
    InputError
        When there is no such snapshot, no spectrum of weights, or one that is not finite.
    """
    spectra = run["spectra"].to_dataset()
    if "weight" not in spectra:
        raise InputError("the store holds no singular values of weights, which an allocation needs")
    steps = spectra["step"].to_numpy()
    if not len(steps):
        raise InputError("the store has no snapshot yet")
    row = len(steps) - 1
    if step is not None:
        if step not in steps:
            raise InputError(f"no snapshot at step {step}; there are {_listed(steps.tolist())}")
        row = int(np.flatnonzero(steps == step)[0])
    values = spectra["weight"].isel(step=row).to_numpy().astype(np.float64)
    columns = [
        spectra[name].to_numpy().tolist() for name in ("matrix", "layer", "role", "rows", "cols")
    ]
    matrices = [Matrix(*of_one) for of_one in zip(*columns, strict=True)]
    spoilt = [m.name for m, v in zip(matrices, values, strict=True)
              if not np.isfinite(v[: m.full_rank]).all()]  # fmt: skip
    if spoilt:
        raise InputError(
            f"no ranks for {_listed(spoilt)}: the weights hold a NaN or an infinity, are beyond "
            "the numbers of the store, or were not recorded"
        )
    each = tuple(Candidate(m, v[: m.full_rank]) for m, v in zip(matrices, values, strict=True))
    attrs = run.attrs
    model = attrs.get("model") or {}
    known = (attrs.get("checkpoints") or {}).get(str(int(steps[row])), {})
    described = {
        "name": str(model.get("name", "")),
        "revision": known.get("revision"),
        "sha256": known.get("sha256"),
    }
    approximate = "weight_error" in spectra
    return Candidates(
        each,
        described,
        str(model.get("format", "BF16")),
        approximate,
        int(steps[row]),
        dict(attrs.get("fused") or {}),
    )


def _listed(items: Sequence[object]) -> str:
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(map(str, items[:3])) + more

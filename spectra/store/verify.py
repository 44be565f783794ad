"""Is a store whole? Every array readable, every committed row complete and plausible."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr

from spectra.store.reader import check_schema
from spectra.store.schema import UNSET


@dataclass(frozen=True)
class Verdict:
    """What a check of a store found."""

    store: str
    snapshots: int
    train_steps: int
    problems: tuple[str, ...]
    """Why the store is not whole, a line each; empty when it is."""
    notes: tuple[str, ...]
    """What is unusual but harms no reader."""

    @property
    def whole(self) -> bool:
        return not self.problems


def verify(store: str | Path) -> Verdict:
    """Check a store, reading all of it.

    Raises
    ------
    InputError
        When there is no store of this schema at all.
    """
    check_schema(store)
    root = zarr.open_group(str(store), mode="r", use_consolidated=False)
    problems: list[str] = []
    notes: list[str] = []
    if missing := [n for n in ("spectra", "train") if not isinstance(root.get(n), zarr.Group)]:
        return Verdict(str(store), 0, 0, tuple(f"the group {n} is missing" for n in missing), ())
    steps = _steps(root, "spectra/step", problems)
    train_steps = _steps(root, "train/train_step", problems)
    if not problems:
        problems.extend(_check_spectra(root, steps))
        problems.extend(_check_sketches(root, steps))
        problems.extend(_check_train(root, train_steps))
        notes.extend(_uncommitted(root, steps))
    return Verdict(str(store), len(steps), len(train_steps), tuple(problems), tuple(notes))


def _steps(root: zarr.Group, path: str, problems: list[str]) -> npt.NDArray[np.int64]:
    """The committed steps; they are the first rows, ascending."""
    read = _read(root, path, slice(None))
    if isinstance(read, str):
        problems.append(read)
        return np.empty(0, np.int64)
    committed = read != UNSET
    count = int(committed.sum())
    if not committed[:count].all():
        problems.append(f"{path} has a gap: a later row is set while an earlier one is not")
    steps = read[committed]
    if (np.diff(steps) <= 0).any():
        problems.append(f"{path} is not ascending: {steps.tolist()}")
    return cast("npt.NDArray[np.int64]", steps)


def _check_spectra(root: zarr.Group, steps: npt.NDArray[np.int64]) -> Iterator[str]:
    names, rows, cols = (
        _read(root, f"spectra/{n}", slice(None)) for n in ("matrix", "rows", "cols")
    )
    for value in (names, rows, cols):
        if isinstance(value, str):
            yield value
            return
    full_ranks = np.minimum(rows, cols)
    group = cast(zarr.Group, root["spectra"])
    arrays = [name for name, array in group.arrays() if array.ndim == 3]
    if "weight" not in arrays:
        yield "spectra/weight is missing"
    for name in sorted(arrays):
        for row, step in enumerate(steps):
            values = _read(root, f"spectra/{name}", row)
            if isinstance(values, str):
                yield f"snapshot at step {step}: {values}"
                continue
            # an update needs a step before it, and only weights are there without a probe batch
            may_be_absent = name != "weight"
            for matrix, spectrum, rank in zip(names, values, full_ranks, strict=True):
                if reason := _spectrum_fault(spectrum, int(rank), may_be_absent):
                    yield f"snapshot at step {step}: {name} of {matrix} {reason}"
                    break


def _spectrum_fault(
    spectrum: npt.NDArray[np.floating], rank: int, may_be_absent: bool
) -> str | None:
    count = int(np.isfinite(spectrum).sum())
    if count == 0:
        return None if may_be_absent else "is missing (half written, or the weight was not finite)"
    if count != rank or not np.isfinite(spectrum[:rank]).all():
        return f"has {count} values instead of {rank}"
    if spectrum[rank - 1] < 0 or (np.diff(spectrum[:rank]) > 0).any():
        return "is not a descending list of values of at least 0"
    return None


def _check_sketches(root: zarr.Group, steps: npt.NDArray[np.int64]) -> Iterator[str]:
    if "sketches" not in root:
        return
    own = _read(root, "sketches/step", slice(None))
    if isinstance(own, str):
        yield own
        return
    if own[: len(steps)].tolist() != steps.tolist():
        yield f"sketches/step {own[own != UNSET].tolist()} disagrees with spectra/step"
    for row, step in enumerate(steps):
        values = _read(root, "sketches/gradient", row)
        gradient = _read(root, "spectra/gradient", row)
        if isinstance(values, str):
            yield f"snapshot at step {step}: {values}"
        elif not isinstance(gradient, str):
            absent = np.isnan(values).any(axis=1) & np.isfinite(gradient[:, 0])
            if absent.any():
                yield f"snapshot at step {step}: {absent.sum()} gradient sketches are missing"


def _check_train(root: zarr.Group, steps: npt.NDArray[np.int64]) -> Iterator[str]:
    for name, array in sorted(cast(zarr.Group, root["train"]).arrays()):
        values = _read(root, f"train/{name}", slice(None))
        if isinstance(values, str):
            yield values
        elif array.shape[0] < len(steps):
            yield f"train/{name} has {array.shape[0]} rows for {len(steps)} training steps"


def _uncommitted(root: zarr.Group, steps: npt.NDArray[np.int64]) -> Iterator[str]:
    array = root.get("spectra/weight")
    if isinstance(array, zarr.Array) and len(steps) < array.shape[0]:
        values = _read(root, "spectra/weight", len(steps))
        if not isinstance(values, str) and np.isfinite(values).any():
            yield (
                f"row {len(steps)} holds a snapshot that was never announced (its writing was "
                "interrupted, or a resumed run will write it anew): readers do not see it"
            )


def _read(root: zarr.Group, path: str, selection: int | slice) -> Any:
    """The values of an array, or a line that says why they cannot be read."""
    array = root.get(path)
    if not isinstance(array, zarr.Array):
        return f"the array {path} is missing"
    try:
        return np.asarray(array[selection])
    except Exception as error:  # a broken chunk raises whatever its codec raises
        return f"{path} cannot be read: {str(error).strip() or type(error).__name__}"

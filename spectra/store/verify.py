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
    try:
        root = zarr.open_group(str(store), mode="r", use_consolidated=False)
        announced = zarr.open_group(str(store), mode="r", use_consolidated=True)
        expected = dict(announced.members(max_depth=None))
    except Exception as error:  # a broken zarr.json raises whatever its reader raises
        return Verdict(str(store), 0, 0, (f"the store's metadata cannot be read: {error}",), ())
    problems = list(_check_metadata(root, expected))
    if problems:
        return Verdict(str(store), 0, 0, tuple(problems), ())
    steps = _steps(root, "spectra/step", problems)
    train_steps = _steps(root, "train/train_step", problems)
    notes: list[str] = []
    if not problems:
        problems.extend(_check_names(root))
        problems.extend(_check_spectra(root, steps))
        problems.extend(_check_sketches(root, steps))
        problems.extend(_check_train(root, len(train_steps)))
        notes.extend(_gaps(root, steps, train_steps))
        notes.extend(_uncommitted(root, steps))
    return Verdict(str(store), len(steps), len(train_steps), tuple(problems), tuple(notes))


def _check_metadata(root: zarr.Group, expected: dict[str, Any]) -> Iterator[str]:
    """Every array that the store announces is there, at the size that it announces."""
    if not expected:
        yield "the store's consolidated metadata names no arrays"
    required = {"spectra/step", "spectra/matrix", "spectra/weight", "train/train_step"}
    for path in sorted(required - expected.keys()):
        yield f"{path} is missing from the store's metadata"
    for path, node in sorted(expected.items()):
        try:
            found = root.get(path)
        except Exception as error:  # as above
            yield f"{path} cannot be read: {error}"
            continue
        if found is None:
            yield f"{path} is missing"
        elif isinstance(node, zarr.Array):
            shape = getattr(found, "shape", None)
            if shape != node.shape:
                yield f"{path} has the shape {shape}, but readers are told {node.shape}"


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


def _check_names(root: zarr.Group) -> Iterator[str]:
    names = _read(root, "spectra/matrix", slice(None))
    if isinstance(names, str):
        yield names
    elif "" in names.tolist() or len(set(names.tolist())) != len(names):
        yield "spectra/matrix does not hold a name of its own for every matrix"


def _check_spectra(root: zarr.Group, steps: npt.NDArray[np.int64]) -> Iterator[str]:
    columns = [_read(root, f"spectra/{n}", slice(None)) for n in ("matrix", "rows", "cols")]
    for column in columns:
        if isinstance(column, str):
            yield column
            return
    names, rows, cols = columns
    full_ranks = np.minimum(rows, cols)
    group = cast(zarr.Group, root["spectra"])
    for name in sorted(name for name, array in group.arrays() if array.ndim == 3):
        missing_before = False
        for row, step in enumerate(steps):
            values = _read(root, f"spectra/{name}", row)
            if isinstance(values, str):
                yield f"snapshot at step {step}: {values}"
                continue
            missing = bool(np.isnan(values).all())
            # no update led to the first state
            excused = name == "update" and (row == 0 or missing_before)
            missing_before = missing and excused
            if missing and not excused:
                yield f"snapshot at step {step}: {name} is missing (half written)"
                continue
            for matrix, spectrum, rank in zip(names, values, full_ranks, strict=True):
                if reason := _spectrum_fault(spectrum, int(rank), name != "weight"):
                    yield f"snapshot at step {step}: {name} of {matrix} {reason}"
                    break


def _spectrum_fault(
    spectrum: npt.NDArray[np.floating], rank: int, may_be_absent: bool
) -> str | None:
    count = int(np.isfinite(spectrum).sum())
    if count == 0:
        return None if may_be_absent else "is missing (the weight was not finite)"
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
            disagree = np.isnan(values).any(axis=1) != np.isnan(gradient[:, 0])
            if disagree.any():
                count = int(disagree.sum())
                yield f"snapshot at step {step}: {count} gradients have no sketch, or the reverse"


def _check_train(root: zarr.Group, count: int) -> Iterator[str]:
    for name, _ in sorted(cast(zarr.Group, root["train"]).arrays()):
        values = _read(root, f"train/{name}", slice(count))
        if isinstance(values, str):
            yield values
        elif name == "learning_rate" and not np.isfinite(values).all():
            yield f"train/{name} is missing for {(~np.isfinite(values)).sum()} training steps"


def _gaps(
    root: zarr.Group, steps: npt.NDArray[np.int64], train_steps: npt.NDArray[np.int64]
) -> Iterator[str]:
    """Steps that a recorder passed over: it gave up, and the run was resumed later."""
    every = root.attrs.get("record_every")
    if isinstance(every, int) and every > 0 and len(steps):
        due = np.arange(steps[0] + -steps[0] % every, steps[-1], every)
        if lost := np.setdiff1d(due, steps).tolist():
            yield f"no snapshots at steps {lost}, though one is due every {every} steps"
    if len(train_steps) and (lost_rows := int(train_steps[-1]) - len(train_steps)):
        yield f"{lost_rows} of {train_steps[-1]} training steps are not recorded"


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
    try:
        return np.asarray(cast("zarr.Array[Any]", root[path])[selection])
    except Exception as error:  # a broken chunk raises whatever its codec raises
        return f"{path} cannot be read: {str(error).strip() or type(error).__name__}"

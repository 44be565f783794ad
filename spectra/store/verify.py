"""Is a store whole? Every file as it was written, every committed row complete and plausible."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import zarr

from spectra.quantities import QUANTITIES
from spectra.store.checksums import row_arrays
from spectra.store.integrity import check_snapshots, read_state, shortened
from spectra.store.location import Location, check_schema, require_address, zarr_store
from spectra.store.schedule import Schedule
from spectra.store.schema import BFLOAT16_NAN, UNSET, Status
from spectra_data.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

Members = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Result of a check of a store."""

    store: str
    snapshots: int
    train_steps: int
    problems: tuple[str, ...]
    """Reasons why the store is not whole, a line each; empty if it is."""
    notes: tuple[str, ...]
    """Lines about what is unusual but harms no reader."""

    @property
    def whole(self) -> bool:
        return not self.problems


def verify(store: "xr.DataTree | Location") -> Verdict:
    """Check a store, reading all of it.

    Parameters
    ----------
    store
        A run or a scan, opened or by its address.

    Raises
    ------
    InputError
        When there is no store of this schema at all.
    """
    store = require_address(store)
    check_schema(store)
    files = zarr_store(store)
    try:
        state = read_state(files)
        if state.problems:
            return _verdict(store, [*state.problems, *shortened(state.files)], state.notes)
        root = zarr.open_group(files, mode="r", use_consolidated=False)
        announced = zarr.open_group(files, mode="r", use_consolidated=True)
        expected = dict(announced.members(max_depth=None))
    except Exception as error:  # a broken zarr.json may raise anything
        return _verdict(store, [f"the store's metadata cannot be read: {error}"], [])
    problems: list[str] = []
    notes = list(state.notes)
    arrays = _Arrays(root)
    steps = _steps(arrays, "spectra/step", problems)
    train_steps = _steps(arrays, "train/train_step", problems)
    if not problems:
        if not len(steps):
            problems.append("it holds no snapshot")
        problems.extend(_check_names(arrays))
        problems.extend(_check_steps(arrays, expected, steps))
        problems.extend(_check_spectra(arrays, expected, steps))
        problems.extend(_check_projections(arrays, expected, steps))
        problems.extend(_check_train(arrays, len(train_steps)))
        problems.extend(_check_others(arrays, expected, row_arrays(state.nodes), steps))
        notes.extend(_gaps(root.attrs.asdict(), steps, train_steps))
        notes.extend(_uncommitted(arrays, steps))
    problems.extend(shortened([*state.files, *check_snapshots(files, state, steps.tolist())]))
    return _verdict(store, problems, notes, len(steps), len(train_steps))


def _verdict(
    store: Location,
    problems: Sequence[str],
    notes: Sequence[str],
    snapshots: int = 0,
    train_steps: int = 0,
) -> Verdict:
    """The verdict, with each line once."""
    lines = (tuple(dict.fromkeys(found)) for found in (problems, notes))
    return Verdict(str(store), snapshots, train_steps, *lines)


def _steps(arrays: "_Arrays", path: str, problems: list[str]) -> npt.NDArray[np.int64]:
    """The committed steps, which must be the first rows, ascending."""
    read = arrays.read(path, slice(None))
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


def _check_names(arrays: "_Arrays") -> Iterator[str]:
    names = arrays.kept("spectra/matrix", slice(None))
    if isinstance(names, str):
        yield names
    elif "" in names.tolist() or len(set(names.tolist())) != len(names):
        yield "spectra/matrix does not hold a name of its own for every matrix"


def _check_steps(
    arrays: "_Arrays", expected: Members, steps: npt.NDArray[np.int64]
) -> Iterator[str]:
    """Faults of groups whose own steps announce other snapshots."""
    for path in sorted(path for path in expected if path.endswith("/step")):
        own = arrays.read(path, slice(None))
        if isinstance(own, str):
            yield own
        elif own[: len(steps)].tolist() != steps.tolist():
            yield f"{path} {own[own != UNSET].tolist()} disagrees with spectra/step"


def _check_spectra(
    arrays: "_Arrays", expected: Members, steps: npt.NDArray[np.int64]
) -> Iterator[str]:
    columns = [arrays.read(f"spectra/{n}", slice(None)) for n in ("matrix", "rows", "cols")]
    for column in columns:
        if isinstance(column, str):
            yield column
            return
    names, rows, cols = columns
    for kind, quantity in QUANTITIES.items():
        if f"spectra/{kind}" not in expected:
            continue
        lengths = [quantity.length(*sides) for sides in zip(rows, cols, strict=True)]
        missing_before = False
        for row, step in enumerate(steps):
            values = arrays.read(f"spectra/{kind}", row)
            if isinstance(values, str):
                yield f"snapshot at step {step}: {values}"
                continue
            status = _status(arrays, expected, row, kind)
            if isinstance(status, str):
                yield f"snapshot at step {step}: {status}"
                continue
            missing = bool(np.isnan(values).all())
            if status is None:  # a store that does not say why values are missing
                # no step led to the first state
                excused = quantity.may_lack == "first" and (row == 0 or missing_before)
                missing_before = missing and excused
            else:
                excused = bool((status != Status.MEASURED).all())
            if missing and not excused:
                yield f"snapshot at step {step}: {kind} is missing (half written)"
                continue
            absent = (
                np.full(len(names), quantity.may_lack != "nothing")
                if status is None
                else status > 0
            )
            for matrix, spectrum, rank, may in zip(names, values, lengths, absent, strict=True):
                if reason := _spectrum_fault(spectrum, int(rank), bool(may)):
                    yield f"snapshot at step {step}: {kind} of {matrix} {reason}"
                    break


def _status(arrays: "_Arrays", expected: Members, row: int, part: str) -> Any:
    """Status of a part of a snapshot, by matrix; None if the store does not say."""
    if "status/code" not in expected:
        return None
    status = arrays.kept("status/code", row)
    parts = arrays.kept("status/part", slice(None))
    for unreadable in (status, parts):
        if isinstance(unreadable, str):
            return unreadable
    if part not in parts.tolist():
        return f"status/part does not name {part}"
    column = status[:, parts.tolist().index(part)]
    if (column == Status.UNSET).any():
        return f"the status of {part} is missing (half written)"
    return column


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


def _check_projections(
    arrays: "_Arrays", expected: Members, steps: npt.NDArray[np.int64]
) -> Iterator[str]:
    """Faults of sketches, raw gradients and subspaces: unreadable, or not where the status says."""
    parts = {"sketches": "sketch", "gradients": "raw_gradient", "subspaces": "subspaces"}
    names = arrays.kept("spectra/matrix", slice(None))
    if isinstance(names, str):
        yield names
        return
    numbers = {name: number for number, name in enumerate(names.tolist())}
    for path, node in sorted(expected.items()):
        group, _, _ = path.partition("/")
        if group not in parts or not isinstance(node, zarr.Array) or node.ndim < 3:
            continue
        held = arrays.read(f"{path.rpartition('/')[0]}/matrix", slice(None))
        if isinstance(held, str):
            yield held
            continue
        if not set(held.tolist()) <= numbers.keys():
            yield f"{group} holds matrices that spectra/matrix does not name"
            continue
        rows = [numbers[matrix] for matrix in held]
        for row, step in enumerate(steps):
            values = arrays.read(path, row)
            if isinstance(values, str):
                yield f"snapshot at step {step}: {values}"
                continue
            status = _status(arrays, expected, row, parts[group])
            if isinstance(status, str) or group == "subspaces":
                continue  # a gradient of zero spans nothing, so NaN is not a fault there
            missing = _missing(values)
            if status is None:
                gradient = arrays.read("spectra/gradient", row)
                absent = None if isinstance(gradient, str) else np.isnan(gradient[rows, 0])
            else:
                absent = status[rows] != Status.MEASURED
                missing |= status[rows] == Status.NOT_FINITE  # even if some of it is there
            if absent is not None and (missing != absent).any():
                count = int((missing != absent).sum())
                yield (
                    f"snapshot at step {step}: {count} gradients have no {group} in {path}, "
                    "or the reverse"
                )


def _missing(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each matrix is missing: all of it is the fill value."""
    axes = tuple(range(1, values.ndim))
    missing = values == BFLOAT16_NAN if values.dtype == np.uint16 else np.isnan(values)
    return np.asarray(missing.all(axis=axes))


def _check_train(arrays: "_Arrays", count: int) -> Iterator[str]:
    for name, _ in sorted(cast(zarr.Group, arrays.root["train"]).arrays()):
        values = arrays.read(f"train/{name}", slice(count))
        if isinstance(values, str):
            yield values
        elif name == "learning_rate" and not np.isfinite(values).all():
            yield f"train/{name} is missing for {(~np.isfinite(values)).sum()} training steps"


def _check_others(
    arrays: "_Arrays", expected: Members, by_row: Collection[str], steps: npt.NDArray[np.int64]
) -> Iterator[str]:
    """Faults of coordinates, source and derived groups: unreadable."""
    checked = {*(f"spectra/{kind}" for kind in QUANTITIES), "status/code"}
    for path, node in sorted(expected.items()):
        if not isinstance(node, zarr.Array) or path in checked or path.startswith("train/"):
            continue
        if path in by_row:
            for row, step in enumerate(steps):
                values = None if arrays.was_read(path, row) else arrays.read(path, row)
                if isinstance(values, str):
                    yield f"snapshot at step {step}: {values}"
        elif isinstance(values := arrays.read(path, ...), str):
            yield values


def _gaps(
    attrs: Mapping[str, Any], steps: npt.NDArray[np.int64], train_steps: npt.NDArray[np.int64]
) -> Iterator[str]:
    """Steps that a recorder skipped because it gave up, and the run was resumed later."""
    described = attrs.get("schedule")
    if isinstance(described, dict) and len(steps):
        last = max([*steps[-1:], *train_steps[-1:]])
        try:
            schedule = Schedule.from_dict(described)
        except InputError:
            yield f"the schedule in its attributes is not valid: {described}"
            return
        due = schedule.between(int(steps[0]), int(last))
        if lost := sorted(set(due) - set(steps.tolist())):
            yield f"no snapshots at steps {lost}, though they were due"
    if len(train_steps) and (lost_rows := int(train_steps[-1]) - len(train_steps)):
        yield f"{lost_rows} of {train_steps[-1]} training steps are not recorded"


def _uncommitted(arrays: "_Arrays", steps: npt.NDArray[np.int64]) -> Iterator[str]:
    array = arrays.root.get("spectra/weight")
    if isinstance(array, zarr.Array) and len(steps) < array.shape[0]:
        values = arrays.read("spectra/weight", len(steps))
        if not isinstance(values, str) and np.isfinite(values).any():
            yield (
                f"row {len(steps)} holds a snapshot that was never announced (its writing was "
                "interrupted, or a resumed run will write it anew): readers do not see it"
            )


class _Arrays:
    """The arrays of a store, each opened once."""

    def __init__(self, root: zarr.Group) -> None:
        self.root = root
        self._opened: dict[str, zarr.Array[Any]] = {}
        self._kept: dict[tuple[str, str], Any] = {}
        self._read: set[tuple[str, str]] = set()

    def read(self, path: str, selection: Any) -> Any:
        """The values of an array, or a line that says why they cannot be read."""
        try:
            if path not in self._opened:
                self._opened[path] = cast("zarr.Array[Any]", self.root[path])
            values = np.asarray(self._opened[path][selection])
        except Exception as error:  # a broken chunk may raise anything
            return f"{path} cannot be read: {str(error).strip() or type(error).__name__}"
        self._read.add((path, str(selection)))
        return values

    def was_read(self, path: str, selection: Any) -> bool:
        """Whether these values have been read before, whole."""
        return (path, str(selection)) in self._read

    def kept(self, path: str, selection: Any) -> Any:
        """As `read`, of few values that are read again and again."""
        key = path, str(selection)
        if key not in self._kept:
            self._kept[key] = self.read(path, selection)
        return self._kept[key]

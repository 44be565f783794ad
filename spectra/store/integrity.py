"""Are the files of a store those that were written? Checksums, and the metadata readers get."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from zarr.abc.store import Store

from spectra.store.checksums import (
    ABSENT,
    ATTRIBUTE,
    FILES,
    FOLDER,
    DamagedRecordError,
    FileRecord,
    RowRecord,
    row_arrays,
    row_key,
    row_of,
)
from spectra.store.durable import is_partial
from spectra.store.metadata import ROOT, Node, digests, keys, published, read, read_node
from spectra.store.places import is_seen, owner

TRIES = 5
"""Attempts at reading a store that another process keeps changing."""
MOST_LINES = 20
"""Number of files that are named; the others are counted."""
OLD = "it has no checksums, since an earlier version began it: some damage may not show"
LOST = f"its record of checksums, {FILES}, is missing"


@dataclass
class State:
    """The metadata that readers get, the recorded checksums, and what is wrong with either."""

    nodes: dict[str, Node] = field(default_factory=dict)
    """Metadata of groups and arrays by path, as readers get it."""
    record: FileRecord | None = None
    problems: list[str] = field(default_factory=list)
    """Faults of metadata, after which nothing else can be relied on."""
    files: list[str] = field(default_factory=list)
    """Faults of other files."""
    notes: list[str] = field(default_factory=list)


def read_state(store: Store) -> State:
    """Check the metadata and all files that are not part of a snapshot."""
    for _ in range(TRIES):
        before = read(store, FILES)
        state = _state(store, before)
        if not (state.problems or state.files) or read(store, FILES) == before:
            break
    return state


def check_snapshots(store: Store, state: State, steps: Sequence[int]) -> Iterator[str]:
    """Faults of committed rows, whose every chunk must be what was written."""
    if state.record is None:
        return
    arrays = row_arrays(state.nodes)
    listed: dict[int, set[str]] = {row: set() for row in range(len(steps))}
    for key in keys(store):
        row = row_of(key, arrays)
        if row in listed:
            listed[row].add(key)
    for row in range(state.record.first_row, len(steps)):
        about = f"snapshot at step {steps[row]}"
        try:
            record = RowRecord.unpack(read(store, row_key(row)) or b"")
        except DamagedRecordError:
            yield f"{about}: its checksums, {row_key(row)}, are missing or damaged"
            continue
        if (record.row, record.step) != (row, steps[row]):
            yield f"{about}: its checksums are of another snapshot"
            continue
        found = digests(store, sorted({*record.files, *listed[row]}))
        for key, checksum in found.items():
            if fault := _fault(checksum, [record.files.get(key, ABSENT)]):
                yield f"{about}: {key} {fault}"


def shortened(lines: Sequence[str]) -> Iterator[str]:
    """The first lines about files, and the number of the others."""
    yield from lines[:MOST_LINES]
    if len(lines) > MOST_LINES:
        yield f"{len(lines) - MOST_LINES} more files are not what was written"


def _state(store: Store, record: bytes | None) -> State:
    root = read_node(store) or {}
    state = State(published(root))
    if record is not None:
        try:
            state.record = FileRecord.unpack(record)
        except DamagedRecordError:
            state.files.append(f"its record of checksums, {FILES}, is damaged")
    elif ATTRIBUTE in root.get("attributes", {}):
        state.files.append(LOST)
    else:
        state.notes.append(OLD)
    if state.record is not None and state.record.first_row:
        state.notes.append(f"the first {state.record.first_row} rows have no checksums")
    changed = dict(_changed_files(store, state, [ROOT]))
    if not changed:
        changed = dict(_changed_files(store, state, state.record.files if state.record else ()))
    _compare_metadata(store, state, changed)
    missing = [line.removesuffix(" is missing") for line in state.problems]
    for key, fault in changed.items():
        if key.endswith(ROOT):
            state.problems.append(f"{key} {fault}")
        elif not any(key.startswith(f"{path}/") for path in missing):
            state.files.append(f"{key} {fault}")
    if not state.problems:
        _name_unknown(keys(store), state)
    return state


def _changed_files(store: Store, state: State, wanted: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Files among some that are not what was written, and their faults."""
    if state.record is None:
        return
    recorded = state.record.files
    for key, checksum in digests(store, wanted).items():
        if fault := _fault(checksum, recorded[key]):
            yield key, fault


def _fault(checksum: str, allowed: Collection[str]) -> str | None:
    if checksum in allowed:
        return None
    if checksum == ABSENT:
        return "is missing"
    return "was not written here" if [*allowed] == [ABSENT] else "is not what was written"


def _compare_metadata(store: Store, state: State, changed: Mapping[str, str]) -> None:
    """Compare what every group and array says of itself with what readers get."""
    if not state.nodes:
        state.problems.append("the store's consolidated metadata names no arrays")
    for path in sorted({"spectra/step", "spectra/matrix", "train/train_step"} - state.nodes.keys()):
        state.problems.append(f"{path} is missing from the store's metadata")
    interrupted = []
    recorded = state.record.files if state.record else {}
    for path, seen in sorted(state.nodes.items()):
        key = f"{path}/{ROOT}"
        try:
            own = read_node(store, path)
        except (ValueError, TypeError) as error:
            state.problems.append(f"{path} cannot be read: {error}")
            continue
        if own is None:
            state.problems.append(f"{path} is missing")
        elif names := _differences(own, seen):
            if key in recorded and not {key, ROOT} & changed.keys():
                interrupted.append(path)
            elif "shape" in names:
                shapes = [tuple(node.get("shape", ())) for node in (own, seen)]
                state.problems.append(
                    f"{path} has the shape {shapes[0]}, but readers see {shapes[1]}"
                )
            else:
                state.problems.append(f"{path} differs from what readers see: {names}")
    if interrupted:
        state.notes.append(f"an interrupted change is not seen by readers: {interrupted}")


def _differences(own: Node, seen: Node) -> str:
    names = sorted((own.keys() | seen.keys()) - {"consolidated_metadata"})
    return ", ".join(name for name in names if own.get(name) != seen.get(name))


def _name_unknown(listed: Iterable[str], state: State) -> None:
    """Report files that nobody wrote: a fault if readers take them for chunks, else a note."""
    if state.record is None:
        return
    arrays = row_arrays(state.nodes)
    unknown, partial = [], []
    for key in sorted({*listed} - state.record.files.keys()):
        if is_partial(key):
            partial.append(key)
        elif is_seen(key, state.nodes) and row_of(key, arrays) is None:
            state.files.append(f"{key} was not written here")
        elif not (key.startswith(FOLDER) or owner(key)[0] in state.nodes):
            unknown.append(key)
    if partial:
        state.notes.append(f"{len(partial)} files are half written; readers do not see them")
    if unknown:
        state.notes.append(f"{len(unknown)} files are foreign to this store, such as {unknown[0]}")

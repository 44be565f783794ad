"""A run at a glance: its model and data, its progress, and whether a process writes to it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spectra.store.schedule import Schedule
from spectra_dashboard.access.run import Run
from spectra_data.errors import InputError, printable

State = Literal["running", "finished", "stalled", "unreadable"]
SPARKS = 48
"""Points of a sparkline."""
LONGEST = 200
"""Largest number of characters of an attribute that are shown."""
QUIET = 60.0
"""Seconds without news after which a writer may have stalled; more if snapshots are slow."""
PATIENCE = 4
"""Number of usual intervals between snapshots after which it has stalled."""


@dataclass(frozen=True)
class Summary:
    """One run in the table of runs."""

    name: str
    label: str
    kind: str = ""
    model: str = ""
    data: str = ""
    snapshots: int = 0
    step: int | None = None
    """Step of the last snapshot."""
    steps: int | None = None
    """Last step that the run will record, if its schedule says."""
    train_step: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    tokens: int | None = None
    state: State = "unreadable"
    reason: str = ""
    """Reason why the store cannot be read."""
    updated: float = 0.0
    """Time of the last write, in seconds since 1970."""
    sparks: tuple[float, ...] = ()
    """Training loss, in few points."""


def summary(run: Run) -> Summary:
    """A run at a glance; if the store cannot be read, the reason."""
    try:
        return _summary(run)
    except InputError as error:
        return Summary(run.name, run.label, reason=str(error), updated=_newest([run.path]))
    except Exception as error:  # attributes may hold anything
        reason = run.without_path(f"{run.name} cannot be understood: {error}")
        return Summary(run.name, run.label, reason=reason, updated=_newest([run.path]))


def _summary(run: Run) -> Summary:
    attributes, steps = run.attributes(), run.steps()
    train = run.train("loss", "validation_loss", "tokens")
    loss, validation = train["loss"], train["validation_loss"]
    config, model = attributes.get("config"), attributes.get("model")
    updated = _newest(_written(run.path, len(steps)))
    return Summary(
        name=run.name,
        label=run.label,
        kind=_text(attributes.get("kind", "run")),
        model=_text(model.get("name", "") if isinstance(model, dict) else model or ""),
        data=_named(config.get("data")) if isinstance(config, dict) else "",
        snapshots=len(steps),
        step=int(steps[-1]) if len(steps) else None,
        steps=_schedule(attributes).last,
        train_step=int(train["train_step"][-1]) if len(loss) else None,
        loss=_last(loss),
        validation_loss=_last(validation),
        tokens=None if (tokens := _last(train["tokens"])) is None else int(tokens),
        state=_state(run, attributes, steps, updated),
        updated=updated,
        sparks=sparkline(loss),
    )


def sparkline(values: npt.NDArray[Any], points: int = SPARKS) -> tuple[float, ...]:
    """Means over blocks, scaled to [0, 1]; empty for fewer than two finite values."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return ()
    means = np.array([part.mean() for part in np.array_split(values, min(points, len(values)))])
    spread = means.max() - means.min()
    scaled = (means - means.min()) / spread if spread > 0 else np.full(len(means), 0.5)
    return tuple(scaled.round(3).tolist())


def _state(
    run: Run, attributes: dict[str, Any], steps: npt.NDArray[np.int64], updated: float
) -> State:
    last = _schedule(attributes).last
    if attributes.get("kind") == "scan":
        begun = attributes.get("begun") or {}
        complete = begun.get("step") in steps.tolist()
        open_ended = False
    else:
        complete = last is not None and len(steps) > 0 and int(steps[-1]) >= last
        open_ended = last is None
    if complete:
        return "finished"
    interval = max(0.0, updated - _created(attributes)) / max(1, len(steps))
    fresh = time.time() - updated < max(QUIET, PATIENCE * interval)
    held = writer_alive(run.path)
    if held is not False:
        return "running" if fresh else "stalled"
    return "finished" if open_ended else "stalled"


def writer_alive(path: Path) -> bool | None:
    """Whether a process holds the store's lock; None if the system does not say.

    The lock is only read, never taken: a writer that starts at that moment must not find it held.
    """
    try:
        locks = Path("/proc/locks").read_text("utf-8")
        inode = str(path.stat().st_ino)
    except OSError:
        return None
    # without the device, which layered file systems report differently
    held = [line.split()[5].rpartition(":")[2] for line in locks.splitlines() if "FLOCK" in line]
    return inode in held


def _schedule(attributes: dict[str, Any]) -> Schedule:
    return Schedule.from_dict(attributes["schedule"]) if attributes.get("schedule") else Schedule()


def _created(attributes: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(attributes.get("created"))).timestamp()
    except ValueError:
        return time.time()


def _written(path: Path, snapshots: int) -> Iterator[Path]:
    """Files that show news: metadata, announced rows, and the row being written."""
    yield path / "zarr.json"
    for group in ("spectra/step", "train/train_step", "train/loss"):
        yield from (path / group / "c").glob("*")
    yield from (path / "spectra/weight/c" / str(snapshots)).glob("**/*")


def _newest(paths: Any) -> float:
    times = [0.0]
    for path in paths:
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _last(values: npt.NDArray[Any]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def _named(data: Any) -> str:
    """A data source without its parent folders."""
    text = "" if data is None else str(data)
    return _text(text.rstrip("/").rsplit("/", 1)[-1] if not text.startswith("hf:") else text)


def _text(value: Any) -> str:
    """An attribute as a text that fits into a row and can be sent."""
    text = str(value)
    return printable(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")

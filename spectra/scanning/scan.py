"""`scan`: checkpoints in, a store out.

One pass over each checkpoint, with a few matrices in memory at a time; a killed scan resumes with
the missing matrices.
"""

import contextlib
import dataclasses
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from spectra.checkpoint.address import Address, addresses, steps_of
from spectra.checkpoint.checkpoint import Checkpoint, open_checkpoint
from spectra.machine.devices import device_of
from spectra.machine.progress import Progress, silent
from spectra.matrices import Matrix
from spectra.recording.description import software_versions
from spectra.scanning.decomposition import DecompositionOptions
from spectra.scanning.engines import cluster, in_cluster, in_threads
from spectra.scanning.row import Row, of_missing
from spectra.store.layout import Contents, Layout
from spectra.store.location import Location, exists
from spectra.store.reader import open_store
from spectra.store.schema import Status
from spectra.store.writer import StoreWriter
from spectra_data.errors import InputError, first_lines

Source = str | Path | torch.nn.Module
UNMEASURED = {
    Status.NOT_FINITE: "holds a NaN or an infinity",
    Status.OUT_OF_RANGE: "has singular values that the store's numbers cannot hold (a store of an "
    "older version holds float32: scan into a new one)",
}
FOREVER = 1 << 62
"""Step later than any other: a scan never removes a snapshot."""


@dataclass(frozen=True)
class Summary:
    """Result of a scan."""

    store: str
    snapshots: int
    matrices: int
    decomposed: int
    """Matrices decomposed by this call, over all snapshots; the others were already stored."""
    skipped: tuple[tuple[str, str], ...]
    """Tensors that are not matrices, each with the reason."""
    not_finite: tuple[str, ...]
    """Matrices without values, with step and reason: a NaN, an infinity, or values beyond the
    range of the store."""
    problems: tuple[str, ...] = ()
    """Problems of the checkpoints outside their matrices, which are complete."""


class IncompleteError(InputError):
    """Part of a checkpoint could not be read; the rest is kept."""

    def __init__(self, problems: Sequence[str], done: int, count: int) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "\n".join(first_lines(problems))
            + f"\n{done} of {count} matrices are done and kept: repair the checkpoint, then repeat "
            "the command"
        )


def scan(
    checkpoint: Source | Sequence[str | Path],
    store: str | Path,
    *,
    approximate: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    device: str | None = None,
    seed: int = 0,
    towers: bool = False,
    progress: Progress = silent,
) -> xr.DataTree:
    """Write the singular values of all matrices of one or several checkpoints to a store.

    Parameters
    ----------
    checkpoint
        A Hugging Face folder, a ``.safetensors``, ``.bin``, ``.ckpt`` or ``.gguf`` file, a folder
        of torch.distributed or DeepSpeed, an adapter of peft, which is scanned as the update that
        it adds to its base, a hub name, or a model in memory. Several checkpoints become the
        snapshots of one store, as do the revisions of ``NAME@rev1,rev2`` and the subfolders of a
        folder with a step in their names.
    store
        Path or URL of the store; an interrupted scan resumes there, and more checkpoints of a
        series are appended.
    approximate
        Whether to estimate leading values and quantiles of the spectral density, with error bars,
        in a fraction of the time; the store records this.
    workers
        Number of processes to use; by default, threads of this process.
    scheduler
        Address of a dask.distributed scheduler whose workers see the checkpoint at the same
        address.
    device
        Device that decomposes; by default ``cuda`` if available.
    seed
        Seed of the probes of an approximate scan.
    towers
        Whether to include the matrices of towers other than the language model, e.g. for images.
    progress
        Called after every matrix.

    Returns
    -------
    The store, opened: `spectra/weight` (step, matrix, index) holds the singular values. If the
    weights are not float64 and the sides are 1024 or more, values above 1 % of the largest have a
    relative error under 1e-4, estimated for every matrix; else that of `singular_values`.

    Raises
    ------
    InputError
        When a checkpoint or the store is unusable. If only part of a checkpoint cannot be read, the
        error is raised after the rest is in the store.
    """
    run_scan(checkpoint, store, approximate=approximate, workers=workers, scheduler=scheduler,
             device=device, seed=seed, towers=towers, progress=progress)  # fmt: skip
    return open_store(store)


def run_scan(
    checkpoint: Source | Sequence[str | Path],
    store: str | Path,
    *,
    approximate: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    device: str | None = None,
    seed: int = 0,
    towers: bool = False,
    progress: Progress = silent,
) -> Summary:
    """As `scan`, but returns a summary."""
    if workers is not None and workers < 1:
        raise InputError(f"a scan needs at least 1 worker, not {workers}")
    if isinstance(checkpoint, torch.nn.Module) and (workers or scheduler):
        raise InputError("a model in memory is scanned by threads: leave workers and scheduler out")
    options = DecompositionOptions(approximate, str(device_of(device)), seed)
    series = _series(checkpoint)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(cluster(workers, scheduler))
        first = _opened(series[0], towers)
        writer = _open_store(store, first, options)
        stack.callback(writer.close)
        decomposed = 0
        problems: list[str] = []
        for planned in _remaining(store, writer, series, towers):
            opened = first if planned is series[0] else _opened(planned, towers)
            _require_same_matrices(planned.label, opened, writer.layout.matrices)
            try:
                decomposed += _fill(writer, planned, opened, options, client, progress)
            except OSError as error:  # e.g. a full disk
                why = error.strerror or str(error)
                raise InputError(f"cannot write {store}: {why}; what was done is kept") from error
            problems += opened.problems
        return Summary(
            str(store),
            len(writer.steps),
            len(writer.layout.matrices),
            decomposed,
            tuple((s.name, s.reason) for s in first.skipped),
            tuple(_not_finite(store)),
            tuple(problems),
        )


def opened_series(checkpoint: Source | Sequence[str | Path], towers: bool) -> list[Checkpoint]:
    """The checkpoints of a scan, in their order, of which no weight is read."""
    return [_opened(planned, towers) for planned in _series(checkpoint)]


def _opened(planned: "_Planned", towers: bool) -> Checkpoint:
    checkpoint = open_checkpoint(planned.source, updates=True)
    return checkpoint.with_towers() if towers else checkpoint


@dataclass(frozen=True)
class _Planned:
    source: Address | torch.nn.Module
    step: int

    @property
    def label(self) -> str:
        """Address of the checkpoint in the store, the same from any working directory."""
        if not isinstance(self.source, Address):
            return type(self.source).__name__
        remote = self.source.is_hub_name or "://" in self.source.place
        return str(self.source if remote else self.source.resolved())


def _series(checkpoint: Source | Sequence[str | Path]) -> list[_Planned]:
    if isinstance(checkpoint, torch.nn.Module):
        return [_Planned(checkpoint, 0)]
    several = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    found = addresses([str(one) for one in several])
    pairs = sorted(zip(steps_of(found), found, strict=True), key=lambda pair: pair[0])
    return [_Planned(address, step) for step, address in pairs]


def _fill(
    writer: StoreWriter,
    planned: _Planned,
    checkpoint: Checkpoint,
    options: DecompositionOptions,
    client: Any,
    progress: Progress,
) -> int:
    """Fill one snapshot; return how many of its matrices were missing."""
    identity = _identity(planned, checkpoint)
    begun = writer.attrs.get("begun") or {}
    row = Row(writer, fresh=not _continues(begun, planned, identity))
    writer.describe({"begun": {"step": planned.step} | identity})
    missing = row.missing()
    groups = of_missing(checkpoint.groups(), missing)
    total = len(checkpoint.matrices)
    done = total - len(missing)
    progress(planned.label, done, total)
    if client is not None and isinstance(planned.source, Address):
        spectra = in_cluster(client, planned.source, groups, options)
    else:
        spectra = in_threads(checkpoint, groups, options)
    unreadable: list[str] = []
    try:
        for spectrum in spectra:
            if not spectrum.sha256:
                unreadable.append(str(spectrum.problem))
                continue
            row.add(spectrum)
            done += 1
            progress(planned.label, done, total)
    finally:
        row.flush()
    if unreadable:
        raise IncompleteError(list(dict.fromkeys([*checkpoint.problems, *unreadable])), done, total)
    checkpoints = dict(writer.attrs.get("checkpoints") or {})
    spoilt = [f"{checkpoint.place(m)} {UNMEASURED[status]}" for m, status in row.unmeasured()]
    found = {"sha256": row.sha256(), "not_finite": spoilt}
    checkpoints[str(planned.step)] = identity | found
    writer.describe({"checkpoints": checkpoints})
    writer.announce(planned.step)
    return len(missing)


def _identity(planned: _Planned, checkpoint: Checkpoint) -> dict[str, Any]:
    """Identity of a checkpoint: its address, commit, and current files."""
    files = {name: list(found) for name, found in checkpoint.files.items()}
    return {"checkpoint": planned.label, "revision": checkpoint.revision, "files": files}


def _continues(begun: dict[str, Any], planned: _Planned, identity: dict[str, Any]) -> bool:
    """Whether the unfinished row is of this checkpoint, with no change in a file that was whole."""
    same = all(begun.get(name) == identity[name] for name in ("checkpoint", "revision"))
    was, now = begun.get("files") or {}, identity["files"]
    return (
        same
        and isinstance(planned.source, Address)  # a model in memory may have been trained since
        and begun.get("step") == planned.step
        and all(now.get(name) == found for name, found in was.items())
    )


def _open_store(
    store: Location, checkpoint: Checkpoint, options: DecompositionOptions
) -> StoreWriter:
    if not checkpoint.complete:  # the layout of the store is unknown
        raise InputError("\n".join(first_lines(checkpoint.problems)))
    contents = Contents(("weight",), sketch=0, source=True, errors=options.approximate)
    layout = Layout(tuple(checkpoint.matrices), contents=contents)
    attrs = _describe(checkpoint, contents, options)
    try:
        if not exists(store):
            return StoreWriter.create(store, layout, attrs)
        if open_store(store).attrs.get("kind") != "scan":
            raise InputError(f"{store} is a training run: write the scan to another store")
        return StoreWriter.resume(store, layout, attrs, step=FOREVER)
    except InputError:
        raise
    except Exception as error:  # from the file system, or from behind fsspec
        first = str(error).strip().splitlines()[:1]
        raise InputError(f"cannot write {store}: {first[0] if first else error!r}") from error


def _remaining(
    store: Location, writer: StoreWriter, series: Sequence[_Planned], towers: bool
) -> list[_Planned]:
    """The checkpoints of a series that the store does not hold yet.

    Raises
    ------
    InputError
        When it holds another checkpoint at one of the steps, or steps after a new one.
    """
    held = writer.attrs.get("checkpoints") or {}
    new = [planned for planned in series if planned.step not in writer.steps]
    for planned in series:
        if planned not in new:
            _require_same_checkpoint(store, held.get(str(planned.step), {}), planned, towers)
    if new and writer.steps and new[0].step < writer.steps[-1]:
        raise InputError(
            f"{store} already holds step {writer.steps[-1]}, and snapshots are written in order: "
            f"write a series with step {new[0].step} to another store"
        )
    return new


def _require_same_checkpoint(
    store: Location, held: dict[str, Any], planned: _Planned, towers: bool
) -> None:
    """Require that a snapshot is of a checkpoint, by address and files or else by weights."""
    opened = _opened(planned, towers)
    identity = _identity(planned, opened)
    remote = isinstance(planned.source, Address) and opened.revision is not None
    if isinstance(planned.source, Address) and all(
        held.get(name) == value for name, value in identity.items()
    ):
        return
    if not remote and not opened.problems and held.get("sha256") == opened.sha256():
        return
    was = str(Address(str(held.get("checkpoint")), held.get("revision")))
    now = str(Address(planned.label, opened.revision))
    what = f"{was} as it was then" if was == now else f"{was}, not {now},"
    raise InputError(f"{store} holds {what} at step {planned.step}: write to another store")


def _not_finite(store: Location) -> Iterator[str]:
    """Matrices without values in any snapshot: file, tensor, reason and step."""
    for step, held in (open_store(store).attrs.get("checkpoints") or {}).items():
        yield from (f"{line} (step {step})" for line in held.get("not_finite", ()))


def _require_same_matrices(name: str, checkpoint: Checkpoint, matrices: Sequence[Matrix]) -> None:
    now, were = set(checkpoint.matrices), set(matrices)
    if now == were:
        return
    differences = [f"without {m.name} of {m.rows} x {m.cols}" for m in were - now]
    differences += [f"with {m.name} of {m.rows} x {m.cols}" for m in now - were]
    raise InputError(
        f"{name} has other matrices than the first checkpoint: {'; '.join(sorted(differences)[:6])}"
    )


def _describe(
    checkpoint: Checkpoint, contents: Contents, options: DecompositionOptions
) -> dict[str, Any]:
    sizes = [matrix.rows * matrix.cols for matrix in checkpoint.matrices]
    stated: dict[str, Any] = {"approximate": options.approximate}
    if options.approximate:
        stated["seed"] = options.seed
    return {
        "kind": "scan",
        "model": {
            "name": checkpoint.name,
            "revision": checkpoint.revision,
            "block_parameters": sum(sizes),
            "format": checkpoint.format,
            "config": dict(checkpoint.config),
        },
        "config": stated,
        "fused": checkpoint.fused,
        "software": {"python": platform.python_version()} | software_versions(),
        "probe_sha256": None,
        "contents": contents.to_dict(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "skipped": [dataclasses.asdict(skipped) for skipped in checkpoint.skipped],
    }

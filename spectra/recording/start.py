"""`record`: attach a recorder to a model and an optimizer."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from spectra.keywords import completed, spelled_out
from spectra.matrices import find_matrices
from spectra.recording.background import Background, SharedMatrices
from spectra.recording.description import describe
from spectra.recording.inline import Executor, Inline
from spectra.recording.measure import Measure
from spectra.recording.micro_batches import Probe
from spectra.recording.options import Recording, Where
from spectra.recording.overhead import Overhead
from spectra.recording.probe import probe_sha256, require_loss
from spectra.recording.processes import Processes, processes_of_training
from spectra.recording.recorder import Recorder
from spectra.recording.sketch import CountSketch
from spectra.recording.timings import Timings
from spectra.store.layout import Layout
from spectra.store.location import Location, exists, local_path
from spectra.store.writer import StoreWriter
from spectra_data.errors import InputError
from spectra_data.partial import IS_POSIX


@spelled_out(Recording)
def record(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    store: str | Path,
    *,
    probe: Probe | None,
    recording: Recording | None = None,
    steps: int | None = None,
    seed: int = 0,
    start_step: int = 0,
    resume: bool = False,
    attrs: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Recorder:
    """Record a training run into a store.

    With several processes (`torch.distributed`, wrapped by DDP or FSDP2 or not at all), call it in
    every one of them: each measures its share of the matrices, the first one writes.

    Parameters
    ----------
    model
        The model that is trained. Its matrices are the linear layers inside transformer blocks.
    optimizer
        Its optimizer; the recorder attaches to its step hooks.
    store
        Path of the store to make, or an address that fsspec writes to (``s3://…``, ``memory://…``).
    probe
        The fixed batch on which gradients are taken, the same in every process: token ids (windows,
        length), a batch of arguments by name or in order whose output has a loss, or a function
        of the model that returns the mean loss. None records only what needs no probe.
    recording
        What is recorded, when and where; or pass its fields, listed below, as keywords.
    steps
        Number of optimizer steps of the run, if known: the store is then laid out at full size.
    seed
        Seed of the sketch; runs with the same seed can be compared with each other.
    start_step
        Optimizer steps done before this process, when a run is resumed.
    resume
        Resume the store if it exists; its rows after `start_step` are unset first.
    attrs
        Further attributes of the store; ``model`` (a name) and ``config`` are shown in reports.
    **keywords
        Fields of `Recording`.

    Raises
    ------
    InputError
        When the store exists and `resume` is not set, or was recorded from another model or probe
        batch; when the model has no matrices, or the optimizer is another model's or has no step
        hooks; when the probe yields no loss.

    Examples
    --------
    >>> recorder = spectra.record(
    ...     model, optimizer, "runs/a.zarr", probe=batch, every=500
    ... )  # doctest: +SKIP
    >>> for batch in batches:  # doctest: +SKIP
    ...     model(**batch).loss.backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    """
    recording = completed(Recording, recording, keywords)
    if path := local_path(store):
        store = path.resolve()  # whatever folder the loop changes to
    optimizer = stepping(optimizer)
    probe = _own_copy(probe)
    _require_whole(model)
    found, skipped = find_matrices(model, recording.patterns)
    _require_own_optimizer(model, optimizer)
    _require_probe(probe)
    contents = recording.contents()
    contents = contents if probe is not None else contents.without_probe()
    if not contents.parts:
        raise InputError("there is nothing to record: choose spectra, sketches or subspaces")
    schedule = recording.schedule(steps)
    layout = Layout(tuple(found), schedule.snapshots, schedule.steps, contents)
    overhead = Overhead(recording.overhead, contents)
    processes = processes_of_training()
    _require_background(recording, processes, store)
    _require_json(attrs or {})
    described = describe(model, probe, contents, schedule, seed, skipped, attrs or {})
    _require_same_probe(processes, probe)
    if contents.uses_probe and probe is not None:
        _require_loss(processes, model, probe)
    queue, strict = recording.queue, recording.strict
    memory = _memory(layout, queue) if recording.background != "off" else None
    try:
        writer, recorded, failure = _open_writer(
            processes, store, layout, described, start_step, resume, strict
        )
    except InputError:
        if memory is not None:
            memory.close()
        raise
    timings = Timings()
    executor: Executor
    if recording.background != "off" and memory is not None and writer is not None:
        executor = Background(
            store,
            layout,
            memory,
            writer.lock,
            seed,
            timings,
            when_full=recording.background,
            slots=queue,
        )
    else:
        count_sketch = CountSketch(contents.sketch, seed) if contents.sketch else None
        own = processes.own(layout.matrices)
        executor = Inline(Measure(layout, own, count_sketch, timings), writer, processes, timings)
    recorder = Recorder(
        model,
        layout,
        list(found.values()),
        executor,
        schedule=schedule,
        probe=probe,
        overhead=overhead,
        processes=processes,
        timings=timings,
        step=start_step,
        recorded=recorded,
        strict=strict,
    )
    if failure is not None:
        if memory is not None:
            memory.close()
        recorder.stopped = f"recording did not begin: {failure}"
        warnings.warn(f"{recorder.stopped}; training continues", RuntimeWarning, stacklevel=2)
    recorder.attach(optimizer)
    return recorder


def _memory(layout: Layout, queue: int) -> SharedMatrices:
    try:
        return SharedMatrices(layout, queue)
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(
            f"no memory for a queue of {queue} snapshots ({error}): choose a smaller queue, fewer "
            "spectra or matrices, or leave out background="
        ) from error


def _open_writer(
    processes: Processes,
    store: Location,
    layout: Layout,
    attrs: dict[str, Any],
    start_step: int,
    resume: bool,
    strict: bool,
) -> tuple[StoreWriter | None, list[int], str | None]:
    """The first process's writer, the steps already recorded, and why writing is impossible."""
    writer, recorded, refused, failure = None, [], None, None
    if processes.rank == 0:
        try:
            if resume and exists(store):
                writer = StoreWriter.resume(store, layout, attrs, start_step)
            else:
                writer = StoreWriter.create(store, layout, attrs)
            recorded = writer.steps
        except InputError as error:
            refused = str(error)
        except Exception as error:  # from the disk or the network
            failure = f"{store} cannot be written: {getattr(error, 'strerror', None) or error}"
    recorded, refused, failure = processes.same((recorded, refused, failure))
    if refused or (failure and strict):
        raise InputError(refused or failure)
    return writer, recorded, failure


def _require_background(recording: Recording, processes: Processes, store: Location) -> None:
    if recording.background not in get_args(Where):
        raise InputError(
            f"background is 'wait' or 'drop' (when full), not {recording.background!r}"
        )
    if recording.queue < 1:
        raise InputError(f"a queue holds at least 1 snapshot, not {recording.queue}")
    if recording.background == "off":
        return
    if not IS_POSIX:
        raise InputError(
            "recording in the background needs memory that processes share by its descriptor, "
            "which Windows lacks: leave out background= (--record-background)"
        )
    if str(store).startswith("memory://"):
        raise InputError(
            f"{store} is in the memory of this process, where a background process cannot write: "
            "leave out background="
        )
    if processes.count > 1:
        raise InputError(
            "recording in the background is for one process; in several, the matrices are divided "
            "among them: leave out background="
        )


def stepping(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer whose step hooks are called, inside wrappers such as Accelerate's.

    Raises
    ------
    InputError
        When no optimizer with step hooks is inside.
    """
    inner = optimizer
    while not hasattr(inner, "_optimizer_step_pre_hooks"):
        if not hasattr(inner, "optimizer"):
            raise InputError(
                f"a {type(optimizer).__name__} has no step hooks, which the recorder needs: "
                "pass the torch.optim.Optimizer that it steps"
            )
        inner = inner.optimizer
    found: torch.optim.Optimizer = inner
    return found


def _require_whole(model: torch.nn.Module) -> None:
    """Require parameters that this process holds, or shards that it can gather."""
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id") or hasattr(parameter, "ds_shape"):
            raise InputError(
                f"{name} is partitioned by DeepSpeed's ZeRO-3, and empty between passes: train "
                "with ZeRO-2 or FSDP2 to record"
            )


def _require_loss(processes: Processes, model: torch.nn.Module, probe: Probe) -> None:
    """Require that the probe yields a loss, before anything is created."""
    wrong = None
    try:
        require_loss(model, probe, rank=processes.rank, processes=processes.count)
    except InputError as error:
        wrong = str(error)
    if (reason := processes.agree(wrong)) is not None:
        raise InputError(reason)


def _require_own_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if trained.isdisjoint(map(id, model.parameters())):
        raise InputError("the optimizer updates no parameter of this model: pass the model's own")


def _require_probe(probe: Any) -> None:
    in_order = isinstance(probe, tuple | list)
    if in_order and all(isinstance(value, torch.Tensor) for value in probe):
        return
    known = isinstance(probe, torch.Tensor | Mapping) and not in_order
    if not (probe is None or known or callable(probe)):
        held = f" of {type(probe[0]).__name__}" if in_order and probe else ""
        raise InputError(
            "a probe is token ids, a batch or a function of the model, "
            f"not a {type(probe).__name__}{held}"
        )


def _own_copy(probe: Probe | None) -> Probe | None:
    """A copy of the probe, independent of what the loop does with the tensors later."""
    if isinstance(probe, torch.Tensor):
        return probe.detach().clone()
    if isinstance(probe, tuple | list):
        moved = (v.detach().clone() if isinstance(v, torch.Tensor) else v for v in probe)
        return type(probe)(moved)
    if isinstance(probe, Mapping):
        copies = {
            name: value.detach().clone() if isinstance(value, torch.Tensor) else value
            for name, value in probe.items()
        }
        return copies
    return probe


def _require_json(attrs: Mapping[str, Any]) -> None:
    try:
        json.dumps(dict(attrs))
    except (TypeError, ValueError) as error:
        raise InputError(f"attrs= cannot be written as JSON: {error}") from error


def _require_same_probe(processes: Processes, probe: Probe | None) -> None:
    mine = probe_sha256(probe) if probe is not None else "none"
    different = None if processes.same(mine) == mine else "another probe batch"
    if processes.agree(different):
        raise InputError(
            "the processes have different probe batches: pass the same in all of them, it is "
            "divided among them"
        )

"""`prune`: put zeros into the matrices of a checkpoint, or into those that stayed dense."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spectra.allocation.rankmap import RankMap
from spectra.calibration.blocks import open_blocks
from spectra.calibration.options import Calibration
from spectra.checkpoint.checkpoint import Checkpoint, Tensors
from spectra.checkpoint.compressed import MergedTensors
from spectra.checkpoint.spectra_config import SpectraConfig
from spectra.checkpoint.tensor_slices import TensorSlice
from spectra.checkpoint.writer import SHARD_BYTES, finish, shards_of, write_shards, writing
from spectra.compression.calibrated import calibration_text, finite_sha256
from spectra.compression.compress import rounded
from spectra.compression.fit import require_fit
from spectra.compression.scratch import Scratch
from spectra.compression.sources import model_tensors, tensor_bytes
from spectra.compression.space import require_space, states_bytes
from spectra.machine.progress import Progress, silent
from spectra.models.loading import require_finite
from spectra.models.places import places_of, undivided
from spectra.models.source import Source
from spectra.pruning.pruner import Pruner
from spectra.pruning.sparsity import Pattern
from spectra.store.durable import write_file
from spectra_data.errors import InputError

REPORT = "pruning.json"
UNREACHED = "calibration never reached it"


@dataclass(frozen=True)
class Pruned:
    """Result of `prune`."""

    path: Path
    sparsity: float
    """Zeros over all entries of the pruned matrices."""
    matrices: Mapping[str, float]
    """Share of zeros in every pruned matrix, by name."""
    kept: int
    """Number of matrices that are unchanged."""
    left: Mapping[str, str]
    """Matrices that cannot be pruned here, with the reasons."""
    bytes: int


def prune(
    checkpoint: str | Source,
    out: str | Path,
    pattern: Pattern,
    *,
    method: str = "wanda",
    only: str | None = None,
    rank_map: RankMap | None = None,
    calibration: Calibration | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Pruned:
    """Write a pruned checkpoint, in the format of the input.

    Parameters
    ----------
    checkpoint
        A Hugging Face folder or hub name, a GGUF file, or a compressed checkpoint, in which the
        matrices that stayed dense are pruned.
    out
        Folder to write.
    pattern
        Number of zeros.
    method
        ``magnitude``; or ``wanda`` and ``sparsegpt``, which prune each block on the outputs of the
        pruned ones before it.
    only
        ``nlrc``: prune only the N-LRCs of the compressed checkpoint's map, or of `rank_map`.
    rank_map
        Rank map that names the N-LRCs of a dense checkpoint.
    calibration
        Text for all methods but ``magnitude``.
    device
        Device on which blocks run.
    progress
        Called with a stage, the number of its steps done, and their total.

    Raises
    ------
    InputError
        When there is nothing to prune, a matrix's statistics are not finite (with its name), the
        folder holds something else, or another process writes to it.
    """
    out = Path(out)
    if method == "magnitude" and calibration not in (None, Calibration()):
        raise InputError(
            "magnitude is data-free: name another method, or leave the options of calibration out"
        )
    draft = make_draft(checkpoint, only, rank_map)
    source, stored, held = draft.source, draft.stored, draft.held
    opened, slices = source.checkpoint, draft.slices
    config, fixed, wanted = dict(draft.config), dict(draft.fixed), draft.wanted
    pruner = Pruner(method, pattern, wanted)
    about: dict[str, Any] = {"method": method, "sparsity": pattern.sparsity, "only": only}
    if pattern.structured:
        about["pattern"] = f"{pattern.of - pattern.zeros}:{pattern.of}"
    with writing(out):
        scratch = None
        if method != "magnitude":
            calibration = calibration or Calibration()
            windows, text = calibration_text(source, calibration, device, progress)
            about["calibration"] = text | {"seed": calibration.seed, "source": calibration.data}
            scratch = Scratch(
                {
                    "checkpoint": opened.identity,
                    "weights": finite_sha256(opened),
                    "pruning": about,
                    "matrices": sorted(wanted),
                }
            )
            with scratch.held():
                ready = _prepared(
                    source, stored, slices, pruner, windows, calibration, device, scratch, progress
                )
            fixed = fixed | dict.fromkeys(sorted(wanted - ready), UNREACHED)
            wanted = wanted & ready
            if not wanted:
                raise InputError(f"there is no matrix to prune by {method}: {UNREACHED}")

        inside: dict[str, list[str]] = {}
        for matrix in sorted(wanted):
            inside.setdefault(slices[matrix].tensor, []).append(matrix)

        def make(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            tensor = stored.read(name)
            require_finite(opened.name, [(name, tensor)])
            if name not in inside:
                return {name: tensor}, {}
            result, counts = tensor.clone(), {}
            for matrix in inside[name]:
                where = slices[matrix]
                home = result if where.entry is None else result[where.entry]
                if scratch is not None:
                    made = scratch.pruned(matrix)
                else:
                    made = pruner.pruned(matrix, where.of(home))
                where.put(home, made)
                counts[matrix] = [int((made == 0).sum()), made.numel()]
            return {name: result}, counts

        sizes = {name: tensor_bytes(stored, name) for name in stored.tensors}
        key = json.dumps([about, sorted(wanted), opened.identity], sort_keys=True)
        written = write_shards(
            out,
            shards_of(sizes, SHARD_BYTES),
            make,
            key=hashlib.sha256(key.encode()).hexdigest(),
            progress=lambda done, count: progress("tensors written", done, count),
        )
        counts = {name: count for notes in written.notes.values() for name, count in notes.items()}
        shares = {name: zeros / entries for name, (zeros, entries) in counts.items()}
        total = sum(zeros for zeros, _ in counts.values()) / sum(n for _, n in counts.values())
        if held is not None:
            made = {**held.compression, "pruning": about}
            config = config | {
                "quantization_config": dataclasses.replace(
                    held, compression=made, sha256=written.sha256
                ).to_dict()
            }
        write_file(out / REPORT, json.dumps({**about, "zeros": shares}, indent=2).encode())
        source.copy_companions(out)
        finish(out, config)
        if scratch is not None:
            scratch.remove()
        return Pruned(out, total, shares, len(opened.matrices) - len(shares), fixed, written.bytes)


@dataclass(frozen=True)
class Draft:
    """What is known of a pruning before anything is read."""

    source: Source
    stored: Tensors
    config: Mapping[str, Any]
    held: SpectraConfig | None
    """Description of a compressed checkpoint; None for others."""
    slices: Mapping[str, TensorSlice]
    """Slices of the stored tensors that are dense matrices, by name."""
    fixed: Mapping[str, str]
    """Matrices that cannot be pruned, with the reasons."""
    wanted: frozenset[str]
    """Matrices to prune."""


def make_draft(
    checkpoint: str | Source, only: str | None = None, rank_map: RankMap | None = None
) -> Draft:
    """Find the matrices to prune; see `prune`.

    Raises
    ------
    InputError
        When there are none.
    """
    source = Source.of(checkpoint)
    if rank_map is not None:
        source = source.spanning(rank_map.ranks)
    stored, config, held = _stored(source)
    fixed = places_of(source).left
    slices = _slices(source, stored)
    wanted = _wanted(source.checkpoint, slices, only, held, rank_map) - fixed.keys()
    if not wanted:
        reasons = "; ".join(dict.fromkeys(fixed.values()))
        raise InputError(f"there is no dense matrix to prune{': ' if reasons else ''}{reasons}")
    return Draft(source, stored, config, held, slices, fixed, wanted)


def _prepared(
    source: Source,
    stored: Tensors,
    slices: Mapping[str, TensorSlice],
    pruner: Pruner,
    windows: torch.Tensor,
    calibration: Calibration,
    device: str,
    scratch: Scratch,
    progress: Progress,
) -> frozenset[str]:
    """Write the pruned weights to scratch, in their stored dtype; return the matrices' names."""
    inside = {matrix.block for matrix in source.checkpoint.matrices}
    if any(scratch.reached(block) is None for block in inside):
        sizes = sum(
            matrix.rows * matrix.cols * stored.tensors[slices[matrix.name].tensor].width
            for matrix in source.checkpoint.matrices
            if matrix.name in pruner.names
        )
        needed = sizes + 2 * states_bytes(windows, source)
        require_space(scratch.path, needed, scratch.bytes, f"pruning by {pruner.method}")
        for block, pruned in pruner.blocks(
            open_blocks(source, device),
            windows,
            calibration.batch_size,
            progress,
            states=scratch.states,
            done=lambda block: scratch.reached(block) is not None,
        ):
            for name, weight in pruned.items():
                dtype = stored.tensors[slices[name].tensor].dtype or weight.dtype
                scratch.save_pruned(name, rounded(name, weight, dtype))
            scratch.finish(block, pruned)
    return frozenset().union(*(scratch.reached(block) or () for block in inside))


def _stored(source: Source) -> tuple[Tensors, dict[str, Any], SpectraConfig | None]:
    """Stored tensors, configuration, and the description of a compressed checkpoint."""
    opened = source.checkpoint
    if isinstance(opened.source, MergedTensors):
        return opened.source.source, dict(opened.config), SpectraConfig.of(opened.config)
    tensors, config = model_tensors(source)
    return tensors, config, None


def _slices(source: Source, stored: Tensors) -> dict[str, TensorSlice]:
    """Slices of the stored tensors that are dense matrices, by name."""
    found = {name: place.stored for name, place in undivided(source).items()}
    for matrix in source.checkpoint.matrices:
        if matrix.name not in found and f"{matrix.name}.weight" in stored.tensors:
            found[matrix.name] = TensorSlice(f"{matrix.name}.weight")
    return found


def _wanted(
    opened: Checkpoint,
    slices: Collection[str],
    only: str | None,
    held: SpectraConfig | None,
    rank_map: RankMap | None,
) -> frozenset[str]:
    """The names of the matrices to prune."""
    if only not in (None, "nlrc"):
        raise InputError(f"only accepts nlrc, not {only!r}")
    factored = held.factored if held is not None else {}
    dense = {m.name for m in opened.matrices if m.name not in factored and m.name in slices}
    if only is not None:
        if held is not None:
            known = held.rank_map
        elif rank_map is not None:
            require_fit(rank_map, opened, weights=False)
            known = rank_map
        else:
            raise InputError("a rank map says which matrices are N-LRCs: name it with --map")
        dense &= {module.name for module in known.nlrc}
    return frozenset(dense)

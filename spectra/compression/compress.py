"""`compress`: make a smaller checkpoint from a checkpoint and a rank map."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spectra.allocation.rankmap import Module, RankMap
from spectra.checkpoint.digests import combined_sha256, digest
from spectra.checkpoint.spectra_config import SpectraConfig
from spectra.checkpoint.tensor_slices import TensorSlice
from spectra.checkpoint.tensors import NAMES
from spectra.checkpoint.writer import (
    SHARD_BYTES,
    Written,
    finish,
    shards_of,
    write_shards,
    writing,
)
from spectra.compression.maps import stored_map
from spectra.compression.plan import Plan, Request, make_plan
from spectra.compression.settings import Compression
from spectra.compression.sources import require_dtype, tensor_bytes
from spectra.compression.weighting import Weighting
from spectra.keywords import completed, spelled_out
from spectra.linalg import scaled
from spectra.machine.progress import Progress, silent
from spectra.models.loading import require_finite
from spectra.models.source import Source
from spectra.storages.registry import STORAGES
from spectra.storages.stored import StoredMatrix
from spectra_data.errors import InputError


@dataclass(frozen=True)
class Compressed:
    """Result of `compress`."""

    path: Path
    rank_map: RankMap
    """Rank map of what is stored, with measured errors."""
    compression: Mapping[str, Any]
    left_dense: Mapping[str, str]
    """Matrices that the map factors but that stay whole, with the reasons."""
    parameters: int
    """Parameters of the whole model, as stored."""
    bytes: int
    """Bytes of all tensors."""
    reused: int
    """Number of tensors that an interrupted call had already written."""


@spelled_out(Compression)
def compress(
    checkpoint: str | Source,
    rank_map: RankMap | None,
    out: str | Path,
    compression: Compression | None = None,
    *,
    device: str = "cpu",
    check_weights: bool = True,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = silent,
    **keywords: Any,
) -> Compressed:
    """Write a compressed checkpoint, which transformers loads once `spectra` is imported.

    Parameters
    ----------
    checkpoint
        A Hugging Face folder, a GGUF file, or a hub name.
    rank_map
        Ranks; None with a `budget`.
    out
        Folder to write; resumes an interrupted call with the same arguments.
    compression
        Method, storage, calibration and so on; or pass its fields as keywords, listed below.
    device
        Device on which calibration and decompositions run.
    check_weights
        Whether to compare the hash of the weights with the map's.
    shard_bytes
        Size of the largest shard in bytes.
    progress
        Called with a stage, the number of its steps done, and their total.
    **keywords
        Fields of `Compression`.

    Raises
    ------
    InputError
        When the map does not fit the checkpoint, a decomposition fails (with the matrix's name),
        the folder holds something else, or another process writes to it.
    """
    compression = completed(Compression, compression, keywords)
    out = Path(out)
    source = Source.of(checkpoint)
    if rank_map is not None:
        source = source.spanning(rank_map.ranks)
    request = Request(source, rank_map, compression, check_weights, device)
    with writing(out):
        return _made(request, out, shard_bytes, progress)


def _made(request: Request, out: Path, shard_bytes: int, progress: Progress) -> Compressed:
    """Write the compressed checkpoint to a folder that is held."""
    plan, dtype = make_plan(request, progress), request.options.dtype
    maker = _Maker(plan, dtype, request.device)
    sizes = {name: tensor_bytes(plan.source, name) for name in plan.source.tensors}
    written = write_shards(
        out,
        shards_of(sizes, shard_bytes),
        maker.make,
        key=_key(plan, dtype),
        progress=lambda done, count: progress("tensors written", done, count),
    )
    if request.check_weights and not request.source.is_gguf:
        _require_hash(plan, written)
    stored_as = next(iter({n["format"] for n in written.notes.values() if "format" in n}), None)
    errors = {
        name: about["error"] for name, about in _matrices(written).items() if "error" in about
    }
    final = stored_map(plan.rank_map, errors=errors, stored_as=stored_as)
    described = SpectraConfig(final, plan.about, written.sha256, places=plan.places).to_dict()
    request.source.copy_companions(out)
    plan.weightings.close()
    finish(out, with_dtype(plan.config, dtype) | {"quantization_config": described})
    return Compressed(
        out,
        final,
        plan.about,
        plan.left_dense,
        written.parameters,
        written.bytes,
        written.reused,
    )


class _Maker:
    """Makes the stored form of each tensor of a model."""

    def __init__(self, plan: Plan, dtype: str | None, device: str) -> None:
        self._plan = plan
        self._at = _matrices_by_tensor(plan)
        self._taken = {place.stored.tensor for place in plan.places.values()}
        described = SpectraConfig(plan.rank_map, places=plan.places)
        first = {guard: m.name for m in reversed(described.factored.values()) for guard in m.guard}
        self._guards = {name: guard for guard, name in first.items()}
        self._dtype = None if dtype is None else require_dtype(dtype)
        self._device = device

    def make(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensor = self._plan.source.read(name)
        require_finite(self._plan.opened.name, [(name, tensor)])
        wide = self._dtype if self._dtype is not None and tensor.is_floating_point() else None
        dtype = wide or tensor.dtype
        made: dict[str, torch.Tensor] = {}
        notes: dict[str, Any] = {}
        for module, where in self._at.get(name, ()):
            weight = where.of(tensor if where.entry is None else tensor[where.entry])
            about: dict[str, Any] = {"sha256": digest(weight).hex()}
            if module.factored:
                tensors, about["error"] = self._factorised(module, weight, dtype)
                made |= tensors
                notes["format"] = NAMES[dtype]
            elif name in self._taken:
                made[f"{module.name}.weight"] = rounded(module.name, weight, wide).clone(
                    memory_format=torch.contiguous_format
                )
            notes.setdefault("matrices", {})[module.name] = about
        return made or {name: rounded(name, tensor, wide)}, notes

    def _factorised(
        self, module: Module, weight: torch.Tensor, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], float]:
        plan = self._plan
        try:
            tensors, error = factorised(
                weight.to(self._device),
                module,
                plan.weightings.of(module.name),
                plan.rank_map.storage,
                dtype,
            )
        except InputError as error_:
            raise InputError(f"{module.name}: {error_}") from error_
        if guard := self._guards.get(module.name):
            tensors[guard] = torch.empty(0, dtype=dtype)
        return tensors, error


def _matrices_by_tensor(plan: Plan) -> dict[str, list[tuple[Module, TensorSlice]]]:
    """The matrices that every tensor holds, with their slices."""
    slices = {name: place.stored for name, place in plan.places.items()}
    if not plan.packed:
        slices = {m.name: where for m, where in plan.opened.matrices.items()} | slices
    found: dict[str, list[tuple[Module, TensorSlice]]] = {}
    for module in plan.rank_map.modules:
        where = slices.get(module.name) or TensorSlice(f"{module.name}.weight")
        found.setdefault(where.tensor, []).append((module, where))
    return found


def _matrices(written: Written) -> dict[str, dict[str, Any]]:
    """What is noted of every matrix: its hash, and the error of its product."""
    notes = written.notes.values()
    return {name: about for note in notes for name, about in note.get("matrices", {}).items()}


def factorised(
    weight: torch.Tensor, module: Module, weighting: Weighting, storage: str, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], float]:
    """The tensors that replace a weight, and the relative error of their product.

    Raises
    ------
    InputError
        When the weight or its decomposition is not finite, or the dtype cannot hold its factors.
    """
    factors = weighting.truncated(weight, module.rank)
    stored = STORAGES[storage].stored().encode(factors, dtype)
    for name, part in stored.tensors.items():
        if not torch.isfinite(part).all():
            raise InputError(f"its factors are too large for {NAMES[dtype]}")
        lost = name in stored.nonzero and part.abs().max() < torch.finfo(dtype).tiny
        if lost and weight.any():
            raise InputError(f"its factors are too small for {NAMES[dtype]}")
    tensors = {f"{module.name}.{part}": value for part, value in stored.tensors.items()}
    return tensors, relative_error(weight, stored)


def relative_error(weight: torch.Tensor, stored: StoredMatrix) -> float:
    r""":math:`\|W - W'\|_F / \|W\|_F` for the stored product W'; 0 for a zero matrix.

    Both are scaled by the weight's largest entry first: near the limits of a dtype, squares would
    overflow or vanish.
    """
    dense, exponent = scaled(weight)
    product = stored.scaled(-exponent).product().to(dense.device)
    norm = torch.linalg.vector_norm(dense, dtype=torch.float64)
    lost = torch.linalg.vector_norm(dense - product, dtype=torch.float64)
    return float(lost / norm) if norm else 0.0


def rounded(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A tensor in another dtype; unchanged if there is none.

    Raises
    ------
    InputError
        When a finite tensor would not stay finite, or one that is not zero would become zero.
    """
    if dtype is None or tensor.dtype == dtype:
        return tensor
    result = tensor.to(dtype)
    if torch.isfinite(tensor).all() and not torch.isfinite(result).all():
        raise InputError(f"{name} holds numbers that are too large for {NAMES[dtype]}")
    if tensor.any() and not result.any():
        raise InputError(f"{name} holds numbers that are too small for {NAMES[dtype]}")
    return result


def with_dtype(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """A model's configuration with the stored dtype of its weights."""
    if dtype is None:
        return dict(config)
    inner = config.get("text_config")
    nested = {"text_config": {**inner, "dtype": dtype}} if isinstance(inner, Mapping) else {}
    return {k: v for k, v in config.items() if k != "torch_dtype"} | {"dtype": dtype} | nested


def _require_hash(plan: Plan, written: Written) -> None:
    """Compare the hash of the weights that were read with the map's."""
    digests = {n: bytes.fromhex(about["sha256"]) for n, about in _matrices(written).items()}
    known = plan.rank_map.model.sha256
    if known is not None and (found := combined_sha256(digests)) != known:
        raise InputError(
            f"the rank map does not fit {plan.opened.name}: its weights hash to {found[:12]}…, the "
            f"map was made for {known[:12]}…"
        )


def _key(plan: Plan, dtype: str | None) -> str:
    known = [plan.opened.identity, plan.rank_map.to_dict(), dict(plan.about), dtype]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

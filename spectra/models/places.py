"""Where a checkpoint's matrices lie in its model, and which cannot be taken out of it."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from spectra.checkpoint.places import Place, shared_parameters, shared_tensors
from spectra.checkpoint.tensor_slices import Rows, TensorSlice, find_slices
from spectra.checkpoint.tensors import StoredTensor
from spectra.matrices import Matrix, Weight, stacked_matrices
from spectra.models.empty import empty_model
from spectra.models.source import Source
from spectra.transformers_internals import is_conv1d, tied_parameters

NO_LAYER = "not a linear layer of the model"
MORE = "its layer holds more than matrices of linear layers"
TAKEN = "its name is taken by another part of the model"
SEVERAL = "its model uses its layer at several places"
WHOLE_STACK = "its model's code reads the whole stack of experts"


@dataclass(frozen=True)
class Places:
    """Where matrices lie that are no whole linear layers, and those without a layer."""

    parts: Mapping[str, Place]
    """Matrices that share a tensor or lie in it transposed, by name; not those of `left`."""
    left: Mapping[str, str]
    """Matrices that cannot get a linear layer of their own, with the reasons."""

    def of_owners(self, names: Any) -> dict[str, Place]:
        """The parts of all layers to which some of these matrices belong."""
        owners = {self.parts[name].within.tensor for name in names if name in self.parts}
        return {n: place for n, place in self.parts.items() if place.within.tensor in owners}


@lru_cache(maxsize=4)
def places_of(source: Source) -> Places:
    """The places of a checkpoint's matrices.

    Raises
    ------
    InputError
        When transformers does not know the model.
    """
    model = empty_model(source)
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    stacked = stacked_matrices(model)
    opened = source.checkpoint
    slices: Mapping[Matrix, TensorSlice] = opened.matrices
    if source.is_gguf:  # which names and cuts its tensors otherwise than the model
        tensors = {n: StoredTensor(n, tuple(p.shape), "BF16", "") for n, p in parameters.items()}
        slices, _ = find_slices(tensors, model.config.to_dict())
    parts: dict[str, Place] = {}
    left: dict[str, str] = {}
    for matrix in opened.matrices:
        name, where = matrix.name, slices.get(matrix)
        within = where and _within(name, where, modules, parameters, stacked)
        if where is None or within is None:
            left[name] = NO_LAYER
        elif within.rows or within.transposed or within.entry is not None:
            parts[name] = Place(matrix.rows, matrix.cols, where, within)
    left |= dict(_shared_blocks(model, opened.matrices, parts))
    left |= dict(_unfit(parts, opened.source.tensors, modules, parameters, source.is_gguf))
    for shared in shared_parameters(parts).values():  # a layer is taken apart whole, or not at all
        if reasons := [left[name] for name in shared.slices if name in left]:
            left |= {name: left.get(name, reasons[0]) for name in shared.slices}
    return Places({n: place for n, place in parts.items() if n not in left}, left)


def _shared_blocks(
    model: Any, matrices: Iterable[Matrix], parts: Mapping[str, Place]
) -> Iterator[tuple[str, str]]:
    """Matrices in modules that the model uses at several places, with the reason."""
    tied = tied_parameters(model)
    several = {*tied, *tied.values()}
    for matrix in matrices:
        place = parts.get(matrix.name)
        if (place.within.tensor if place is not None else f"{matrix.name}.weight") in several:
            yield matrix.name, SEVERAL


def undivided(source: Source) -> dict[str, Place]:
    """Places of matrices whose layers the checkpoint holds in one piece, compressed or not."""
    taken = source.compressed.places if source.is_compressed else {}
    return {name: place for name, place in places_of(source).parts.items() if name not in taken}


def _within(
    name: str,
    where: TensorSlice,
    modules: Mapping[str, torch.nn.Module],
    parameters: Mapping[str, torch.nn.Parameter],
    stacked: Mapping[str, tuple[str, Weight]],
) -> TensorSlice | None:
    """The slice of a parameter of the model that a matrix is; None if there is none."""
    path = where.tensor.removesuffix(".weight")
    owner = modules.get(path)
    if where.entry is not None:
        parameter = parameters.get(where.tensor)
        return where if parameter is not None and parameter.ndim == 3 else None
    if where.transposed or where.rows:
        linear = isinstance(owner, torch.nn.Linear) and not where.transposed
        fits = linear or (where.transposed and is_conv1d(owner))
        return where if fits and (where.rows or path == name) else None
    if name in stacked:
        parameter_name, weight = stacked[name]
        outputs = parameters[parameter_name].shape[2 if weight.transposed else 1]
        entry, *rest = weight.index
        assert isinstance(entry, int)
        rows = _runs(rest[-1] if rest else slice(None), outputs)
        return TensorSlice(parameter_name, entry, rows, weight.transposed)
    return where if path == name and isinstance(owner, torch.nn.Linear) else None


def _runs(rows: Any, outputs: int) -> Rows:
    first, last, step = rows.indices(outputs)
    return () if (first, last, step) == (0, outputs, 1) else ((first, last, step),)


def _unfit(
    parts: Mapping[str, Place],
    tensors: Mapping[str, StoredTensor],
    modules: Mapping[str, torch.nn.Module],
    parameters: Mapping[str, torch.nn.Parameter],
    packed: bool,
) -> Iterator[tuple[str, str]]:
    """Matrices whose layer cannot be taken apart, with the reasons."""
    for owner, shared in shared_parameters(parts).items():
        whole = tuple(parameters[owner].shape) == shared.shape
        for name in shared.slices:
            folder, _, last = name.rpartition(".")
            path, _, attribute = owner.rpartition(".")
            if not whole:
                yield name, MORE
            elif name != path and hasattr(modules.get(folder), last):
                yield name, TAKEN
            elif parts[name].within.entry is not None and not _takes_entries(
                modules[path], attribute
            ):
                yield name, WHOLE_STACK
    if not packed:
        for held, shared in shared_tensors(parts).items():
            if tensors[held].shape != shared.shape:
                yield from ((name, MORE) for name in shared.slices)


def _takes_entries(owner: Any, attribute: str) -> bool:
    """Whether a module's code multiplies by one expert's weight at a time, or by all with bmm."""
    try:
        code = inspect.getsource(type(owner))
    except (OSError, TypeError):
        return False
    at_once = re.search(rf"torch\.bmm\(.*, self\.{attribute}\)", code)
    return f"self.{attribute}[" in code or at_once is not None

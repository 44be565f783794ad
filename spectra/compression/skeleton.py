"""A trial of the compressed model before it is written: built without weights, and run once.

Under torch's fake tensors, a model of any size is built and run in seconds, without memory for its
weights. So it is known before anything is written which weights the model's code reads by name, as
some models do, and that the compressed model will run.
"""

import contextlib
import inspect
import logging
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from spectra.allocation.rankmap import RankMap
from spectra.checkpoint.notes import note
from spectra.checkpoint.spectra_config import SpectraConfig
from spectra.models.empty import empty_model
from spectra.models.lowrank import put_layers
from spectra.models.places import places_of
from spectra.models.source import Source
from spectra.storages.layer import put
from spectra.transformers_internals import initialise_again, is_conv1d
from spectra_data.errors import InputError, first_line

READS_WEIGHT = "its model's code reads its weight itself"
UNKNOWN = (DataDependentOutputException, DynamicOutputShapeException)
"""Errors of operations that need values, which fake tensors lack."""
LENGTH = 4
"""Number of tokens on which the skeleton runs."""


class _Watched(torch.nn.Module):
    """A linear layer that records when its weight is read by name."""

    def __init__(self, layer: Any, path: str, seen: set[str]) -> None:
        super().__init__()
        self._held = (layer, path, seen)  # not a submodule: parameters would be found

    def __getattr__(self, name: str) -> Any:
        layer, path, seen = self.__dict__["_held"]
        if name == "weight":
            seen.add(path)
        return getattr(layer, name)

    def forward(self, x: torch.Tensor) -> Any:
        return self._held[0](x)


def read_by_name(source: Source, names: Collection[str]) -> frozenset[str]:
    """Matrices whose layers' weights the model's code reads itself: no other layer can replace
    these.

    Parameters
    ----------
    source
        Checkpoint of the model.
    names
        Names of matrices to check.

    Raises
    ------
    InputError
        When transformers does not know the model.
    """
    seen: set[str] = set()
    model = empty_model(source)
    parts = places_of(source).parts
    owners = {n: parts[n].within.tensor.removesuffix(".weight") if n in parts else n for n in names}
    modules = dict(model.named_modules())
    with _fake() as mode:
        _filled(model, mode)
        for path in dict.fromkeys(owners.values()):
            layer = modules.get(path)
            if isinstance(layer, torch.nn.Linear) or is_conv1d(layer):
                put(model, path, _Watched(layer, path, seen))
                if _is_in_source(model, path):  # a kernel for other devices may read it
                    seen.add(path)
        try:
            _run(model, owners.values())
        except Exception as error:  # from torch or the model, if fake tensors do not suffice
            note(f"{source} could not be tried before writing: {first_line(error)}")
    return frozenset(name for name, path in owners.items() if path in seen)


def require_running(source: Source, rank_map: RankMap) -> None:
    """Require that the model with its low-rank layers runs, as far as that needs no values.

    Which experts run depends on values; so a model with layers of experts runs up to these.

    Raises
    ------
    InputError
        When it does not run, with the error of its code, or a layer does not fit the map.
    """
    model = empty_model(source)
    with _fake() as mode:
        _filled(model, mode)
        try:
            _run(model)
        except Exception:  # then the compressed one cannot be tried either; `read_by_name` noted it
            return
        factored = [module.name for module in rank_map.modules if module.factored]
        places = places_of(source).of_owners(factored)
        put_layers(model, SpectraConfig(rank_map, places=places))
        try:
            model.tie_weights()
            _run(model, factored)
        except UNKNOWN:
            return
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} does not run with low-rank layers: {first_line(error)}"
            ) from error


def _is_in_source(model: Any, name: str) -> bool:
    """Whether the code of a layer's owner contains ``.layer.weight``."""
    owner, _, last = name.rpartition(".")
    try:
        code = inspect.getsource(type(model.get_submodule(owner)))
    except (OSError, TypeError):
        return False
    return f".{last}.weight" in code


def _filled(model: Any, mode: FakeTensorMode) -> None:
    """Fill a model without weights with fake ones, in bfloat16, which experts' kernels need."""
    fakes: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=torch.bfloat16, device="cpu")
                fake = fakes.setdefault(id(parameter), torch.nn.Parameter(empty, False))
                module._parameters[name] = fake
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)


@torch.no_grad()
def _run(model: Any, replaced: Iterable[str] = ()) -> None:
    """Run the initialisation that follows loading, and a forward pass as in evaluation."""
    model.eval()
    with contextlib.suppress(*UNKNOWN):
        initialise_again(model, replaced)
    model(input_ids=torch.zeros(1, LENGTH, dtype=torch.long), use_cache=False)


@contextlib.contextmanager
def _fake() -> Iterator[FakeTensorMode]:
    """Tensors without values; torch's log of operations that it cannot fake is hidden."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        log.setLevel(level)

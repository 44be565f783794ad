"""A compressed model before there is one: built without weights, and run once.

Under torch's fake tensors a model of any size is built and run in seconds, and takes no memory. So
it is known before anything is written which layers' weights its code reads by name, as some models
do, and that what will be written runs.
"""

import contextlib
import inspect
import logging
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from spectra.allocation.rankmap import RankMap
from spectra.checkpoint.notes import note
from spectra.checkpoint.spectra_config import SpectraConfig
from spectra.models.loading import empty_model
from spectra.models.lowrank import put_layers
from spectra.models.source import Source
from spectra.storages.layer import put
from spectra_data.errors import InputError, first_line

READS_WEIGHT = "its model's code reads its weight itself"
UNKNOWN = (DataDependentOutputException, DynamicOutputShapeException)
"""What needs numbers, which fake tensors have not."""
LENGTH = 4
"""Tokens that the skeleton is run on."""


class _Watched(torch.nn.Module):
    """A linear layer that says when its weight is asked for by name."""

    def __init__(self, linear: torch.nn.Linear, name: str, seen: set[str]) -> None:
        super().__init__()
        self._held = (linear, name, seen)  # not a submodule: parameters would be found
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @property
    def weight(self) -> torch.Tensor:
        linear, name, seen = self._held
        seen.add(name)
        return linear.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self._held[0].bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        linear = self._held[0]
        return F.linear(x, linear.weight, linear.bias)


def read_by_name(source: Source, names: Collection[str]) -> frozenset[str]:
    """Layers whose weights the model's code reads, which no low-rank layer can stand for.

    Parameters
    ----------
    source
        The checkpoint.
    names
        Of linear layers.

    Raises
    ------
    InputError
        When transformers does not know the model.
    """
    seen: set[str] = set()
    model = empty_model(source)
    with _fake() as mode:
        _filled(model, mode)
        for name in names:
            linear = model.get_submodule(name)
            if isinstance(linear, torch.nn.Linear):
                put(model, name, _Watched(linear, name, seen))
                if _is_in_source(model, name):  # where only a kernel of other devices reads it
                    seen.add(name)
        try:
            _run(model)
        except Exception as error:  # of torch or of the model, where fake tensors are not enough
            note(f"{source} could not be tried before it is written: {first_line(error)}")
    return frozenset(seen)


def require_running(source: Source, rank_map: RankMap) -> None:
    """Require that the model with its low-rank layers runs.

    Raises
    ------
    InputError
        When it does not, with what its code says, or a layer is not as the map has it.
    """
    model = empty_model(source)
    with _fake() as mode:
        _filled(model, mode)
        try:
            _run(model)
        except Exception:  # then nothing is known of the compressed one, as was said before
            return
        put_layers(model, SpectraConfig(rank_map))
        try:
            _run(model)
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} does not run with low-rank layers: {first_line(error)}"
            ) from error


def _is_in_source(model: Any, name: str) -> bool:
    """Whether the code of a layer's owner has ``.layer.weight`` in it."""
    owner, _, last = name.rpartition(".")
    try:
        code = inspect.getsource(type(model.get_submodule(owner)))
    except (OSError, TypeError):
        return False
    return f".{last}.weight" in code


def _filled(model: Any, mode: FakeTensorMode) -> None:
    """Give a model that has no weights fake ones, in bfloat16, which experts' kernels are of."""
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
def _run(model: Any) -> None:
    """What loading does after it has filled a model, and a forward pass."""
    for module in model.modules():
        module._is_hf_initialized = False
    with contextlib.suppress(*UNKNOWN):
        model.initialize_weights()
    model(input_ids=torch.zeros(1, LENGTH, dtype=torch.long), use_cache=False)


@contextlib.contextmanager
def _fake() -> Iterator[FakeTensorMode]:
    """Tensors without numbers; what torch logs of operations that it cannot fake is not shown."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        log.setLevel(level)

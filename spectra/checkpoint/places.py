"""Matrices that share a tensor, or lie in one otherwise than their names say.

A fused layer (``qkv_proj``) holds several matrices, a stack of experts many, and a layer of GPT-2
its one transposed. Each is a matrix with a name of its own (``self_attn.q_proj``), under which it
can be compressed. A place says where it lies in the checkpoint and in the model.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from spectra.checkpoint.tensor_slices import TensorSlice
from spectra.checkpoint.tensors import StoredTensor
from spectra_data.errors import InputError


@dataclass(frozen=True)
class Place:
    """Where a matrix lies in a checkpoint and in its model."""

    rows: int
    cols: int
    stored: TensorSlice
    """Its slice of a tensor of the dense checkpoint, by the names of `Checkpoint.source`."""
    within: TensorSlice
    """Its slice of a parameter of the model; another than `stored` if only the model stacks."""

    @property
    def is_alone(self) -> bool:
        """Whether the checkpoint holds it in a tensor of its own, upright."""
        return self.stored.tensor != self.within.tensor

    def read(self, source: Any) -> torch.Tensor:
        """The matrix, from the tensors of the dense checkpoint: (rows, cols)."""
        tensor: torch.Tensor = source.read(self.stored.tensor, self.stored.entry)
        return self.stored.of(tensor)

    def to_dict(self) -> dict[str, Any]:
        """Content of an entry of ``places`` in ``config.json``."""
        described = {"rows": self.rows, "cols": self.cols, "stored": _described(self.stored)}
        return described | ({"within": _described(self.within)} if self.is_alone else {})

    @classmethod
    def of(cls, described: Any) -> "Place":
        """Parse such an entry.

        Raises
        ------
        InputError
            When it is damaged.
        """
        try:
            stored = _slice(described["stored"])
            within = _slice(described["within"]) if "within" in described else stored
            return cls(int(described["rows"]), int(described["cols"]), stored, within)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("the checkpoint's quantization_config is damaged") from error


def _described(where: TensorSlice) -> dict[str, Any]:
    described: dict[str, Any] = {"tensor": where.tensor}
    described |= {} if where.entry is None else {"entry": where.entry}
    described |= {"rows": where.rows} if where.rows else {}
    return described | ({"transposed": True} if where.transposed else {})


def _slice(described: Mapping[str, Any]) -> TensorSlice:
    runs = tuple((int(a), int(b), int(step)) for a, b, step in described.get("rows", ()))
    entry = described.get("entry")
    transposed = bool(described.get("transposed", False))
    return TensorSlice(
        str(described["tensor"]), None if entry is None else int(entry), runs, transposed
    )


@dataclass(frozen=True, eq=False)
class SharedTensor:
    """A tensor, or a parameter of a model, with the matrices that it consists of."""

    name: str
    slices: Mapping[str, TensorSlice]
    """Slices of it, by matrix."""
    sides: Mapping[str, tuple[int, int]]
    """Rows and columns by matrix."""

    @cached_property
    def entries(self) -> dict[int | None, list[str]]:
        """Matrices by the entry of the stack; None is the only one if it is no stack."""
        found: dict[int | None, list[str]] = {}
        for name, where in self.slices.items():
            found.setdefault(where.entry, []).append(name)
        return found

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        names = next(iter(self.entries.values()))
        rows, cols = sum(self.sides[name][0] for name in names), self.sides[names[0]][1]
        both = (cols, rows) if self.slices[names[0]].transposed else (rows, cols)
        return both if None in self.entries else (len(self.entries), *both)

    def joined(
        self, read: Any, first: int | None = None, *, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The tensor, or one entry of it, from its matrices.

        Parameters
        ----------
        read
            Function from the name of a matrix to its weight, (rows, cols).
        first
            Number of the entry; None for all.
        dtype
            Dtype of the result; that of the first matrix by default.
        """
        wanted = self.entries if first is None else {first: self.entries[first]}
        whole: torch.Tensor | None = None
        for entry, names in wanted.items():
            for name in names:
                weight: torch.Tensor = read(name)
                if whole is None:
                    shape = self.shape if first is None else self.shape[1:]
                    whole = torch.empty(shape, dtype=dtype or weight.dtype, device=weight.device)
                home = whole if entry is None or first is not None else whole[entry]
                self.slices[name].put(home, weight)
        assert whole is not None
        return whole


def shared_tensors(places: Mapping[str, Place]) -> dict[str, SharedTensor]:
    """The checkpoint's tensors that places are slices of, by name."""
    return _shared({name: place.stored for name, place in places.items()}, places)


def shared_parameters(places: Mapping[str, Place]) -> dict[str, SharedTensor]:
    """The model's parameters that places are slices of, by name."""
    return _shared({name: place.within for name, place in places.items()}, places)


def _shared(
    slices: Mapping[str, TensorSlice], places: Mapping[str, Place]
) -> dict[str, SharedTensor]:
    together: dict[str, dict[str, TensorSlice]] = {}
    for name, where in slices.items():
        together.setdefault(where.tensor, {})[name] = where
    return {
        tensor: SharedTensor(tensor, inside, {n: (places[n].rows, places[n].cols) for n in inside})
        for tensor, inside in together.items()
    }


class PartTensors:
    """Tensors in which matrices have tensors of their own: ``….q_proj.weight``.

    Parameters
    ----------
    source
        Tensors of the dense checkpoint.
    places
        Matrices that are taken out of the tensors that hold them.
    """

    def __init__(self, source: Any, places: Mapping[str, Place]) -> None:
        self._source = source
        self._places = {f"{name}.weight": place for name, place in places.items()}
        held = {place.stored.tensor for place in places.values()}
        self._last: tuple[tuple[str, int | None], torch.Tensor] | None = None
        self.tensors: dict[str, StoredTensor] = {
            name: tensor for name, tensor in source.tensors.items() if name not in held
        }
        for name, place in self._places.items():
            whole = source.tensors[place.stored.tensor]
            own = dataclasses.replace(whole, name=name, shape=(place.rows, place.cols))
            self.tensors[name] = own

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """See `Tensors`; a tensor that several parts are cut out of in turn is read once."""
        place = self._places.get(name)
        if place is None:
            whole: torch.Tensor = self._source.read(name, first)
            return whole
        key = (place.stored.tensor, place.stored.entry)
        if self._last is None or self._last[0] != key:
            self._last = key, self._source.read(*key)
        part = place.stored.of(self._last[1]).clone()
        return part if first is None else part[first]


class StackedTensors:
    """Tensors in which matrices of their own are stacked, as only the model does it.

    Parameters
    ----------
    source
        Tensors of the dense checkpoint.
    places
        Matrices that the model stacks.
    """

    def __init__(self, source: Any, places: Mapping[str, Place]) -> None:
        self._source, self._places = source, places
        self._stacks = shared_parameters(places)
        held = {place.stored.tensor for place in places.values()}
        self.tensors: dict[str, StoredTensor] = {
            name: tensor for name, tensor in source.tensors.items() if name not in held
        }
        for name, stack in self._stacks.items():
            one = source.tensors[places[next(iter(stack.slices))].stored.tensor]
            self.tensors[name] = dataclasses.replace(one, name=name, shape=stack.shape)

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """See `Tensors`."""
        stack = self._stacks.get(name)
        if stack is None:
            whole: torch.Tensor = self._source.read(name, first)
            return whole
        return stack.joined(lambda matrix: self._places[matrix].read(self._source), first)

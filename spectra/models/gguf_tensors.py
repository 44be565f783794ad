"""The tensors of a GGUF model under the names of its parameters, as transformers makes them.

llama.cpp's converter orders the rows of some matrices anew, splits stacks and shifts norms;
transformers undoes that tensor by tensor. Here, each is read and undone when it is asked for, from
one file or several, so that a model of any size needs the memory of a tensor.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from spectra.checkpoint.checkpoint import Tensors
from spectra.checkpoint.gguf_file import transformers_name
from spectra.checkpoint.tensors import NAMES, StoredTensor
from spectra.models.empty import empty_model
from spectra.models.messages import loading
from spectra.models.source import Source
from spectra.transformers_internals import GgufConversion, gguf_conversion, tied_parameters
from spectra_data.errors import InputError


class GgufTensors:
    """Tensors by the names of a model's parameters, in float32 or rounded.

    Parameters
    ----------
    stored
        Tensors by the names that `transformers_name` gives them.
    names
        llama.cpp's name of each parameter.
    shapes
        Shape of each parameter.
    conversion
        What transformers does to a tensor.
    dtype
        Precision that floating-point tensors are rounded to.
    """

    def __init__(
        self,
        stored: Tensors,
        names: Mapping[str, str],
        shapes: Mapping[str, tuple[int, ...]],
        conversion: GgufConversion,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._stored, self._names, self._shapes = stored, names, shapes
        self._conversion, self._dtype = conversion, dtype
        self.tensors = {
            name: StoredTensor(name, shapes[name], NAMES[dtype], "", self._held(packed).problem)
            for name, packed in names.items()
        }

    def rounded(self, dtype: torch.dtype) -> "GgufTensors":
        """The same in another precision."""
        return GgufTensors(self._stored, self._names, self._shapes, self._conversion, dtype)

    def read(self, name: str, first: int | None = None) -> torch.Tensor:
        """See `Tensors`.

        Raises
        ------
        InputError
            When the tensor cannot be read, or is not what the model has.
        """
        packed = self._names[name]
        weight = self._stored.read(transformers_name(packed))
        made = self._conversion.undone(packed, weight).to(self._dtype)
        if tuple(made.shape) != self._shapes[name]:
            raise InputError(
                f"{packed} is {tuple(made.shape)}, but the model's {name} is {self._shapes[name]}"
            )
        return made if first is None else made[first]

    def _held(self, packed: str) -> StoredTensor:
        return self._stored.tensors[transformers_name(packed)]


@lru_cache(maxsize=2)
def gguf_tensors(source: Source) -> GgufTensors | None:
    """The tensors of a GGUF source by its model's parameters; None if they are not one to one.

    Raises
    ------
    InputError
        When transformers does not know the model.
    """
    model: Any = empty_model(source)
    tied = tied_parameters(model)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if n not in tied}
    with loading(source.address):
        architecture = str(source.checkpoint.config["model_type"]).removeprefix("gguf:")
        conversion = gguf_conversion(source.gguf_files[0], architecture, model)
    stored = source.checkpoint.stored
    names = {
        name: packed
        for packed, name in conversion.names.items()
        if name in shapes and transformers_name(packed) in stored.tensors
    }
    if names.keys() != shapes.keys():
        return None
    return GgufTensors(stored, names, shapes, conversion)

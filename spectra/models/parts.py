"""Layers that hold several matrices, taken apart: each matrix becomes a linear layer of its own.

`take_apart` gives every matrix of a fused layer, of a stack of experts, or of a transposed layer
the linear layer that its name says (``self_attn.q_proj``), next to the layer that it was part of.
What is left there (``qkv_proj``) runs the parts and joins their outputs, so that the model's own
code finds what it calls. Parts can be hooked, replaced by low-rank layers, adapted. `put_together`
makes the model's own layers again.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from spectra.checkpoint.places import Place, SharedTensor, shared_parameters
from spectra.checkpoint.tensor_slices import Rows
from spectra.storages.layer import linear
from spectra.transformers_internals import conv1d, run_experts_by, run_experts_in_turn
from spectra_data.errors import InputError

IN_ONE_PROCESS = (
    "torch.nn.DataParallel cannot copy layers that were taken apart: use DistributedDataParallel, "
    "or one device"
)


class Outputs:
    """Linear layers that read the same input, and the places of their outputs.

    Parameters
    ----------
    home
        Module that the layers are submodules of.
    paths
        Their paths in it.
    runs
        Runs of rows of each; nothing for the only one.
    """

    def __init__(self, home: torch.nn.Module, paths: Sequence[str], runs: Sequence[Rows]) -> None:
        self._home, self.paths = home, tuple(paths)
        rows = [row for part in runs for run in part for row in range(*run)]
        self._order = sorted(range(len(rows)), key=rows.__getitem__)
        self._in_order = self._order == list(range(len(rows)))
        self._indices: dict[torch.device, torch.Tensor] = {}

    def layers(self) -> list[Any]:
        """The layers as they are now: they may have been replaced."""
        return [self._home.get_submodule(path) for path in self.paths]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., cols) to (..., rows)."""
        parts = [layer(x) for layer in self.layers()]
        if len(parts) == 1:
            whole: torch.Tensor = parts[0]
            return whole
        joined = torch.cat(parts, dim=-1)
        return joined if self._in_order else joined.index_select(-1, self._index(x.device))

    def _index(self, device: torch.device) -> torch.Tensor:
        if device not in self._indices:
            with torch.inference_mode(False):  # training may follow
                self._indices[device] = torch.tensor(self._order, device=device)
        return self._indices[device]


class FusedLinear(torch.nn.Module):
    """What is left of a fused layer: it joins the outputs of its parts, which lie next to it."""

    def __init__(self, outputs: Outputs, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.outputs = outputs
        self.bias = bias

    def _replicate_for_data_parallel(self) -> Any:
        raise InputError(IN_ONE_PROCESS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        y = self.outputs(x)
        return y if self.bias is None else y + self.bias


class ExpertStack(torch.nn.Module):
    """What is left of a stack of experts' weights: its entries run the experts' own layers.

    The code of a model takes an entry and multiplies by it, or multiplies all at once. Kernels that
    read the whole stack find no tensor.
    """

    implementation: str | None = None
    """How the model ran its experts before."""

    def __init__(self, entries: Mapping[int, Outputs], transposed: bool) -> None:
        super().__init__()
        self.entries, self.transposed = dict(entries), transposed

    def _replicate_for_data_parallel(self) -> Any:
        raise InputError(IN_ONE_PROCESS)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"experts of a compressed model have no {name}: their layers run one by one "
                "(experts_implementation='eager')"
            ) from None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as far as code asks for it: the number of experts."""
        return (len(self.entries),)

    def __getitem__(self, entry: Any) -> "ExpertWeight":
        return ExpertWeight(self.entries[int(entry)], self.transposed)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """``torch.bmm(x, stack)``, for x of (experts, tokens, in)."""
        if function is torch.bmm and isinstance(args[1], ExpertStack) and args[1].transposed:
            x, stack = args
            return torch.stack([stack[i].times(x[i]) for i in range(len(x))])
        raise NotImplementedError(f"a stack of experts has no {_name(function)}")


class ExpertWeight:
    """An expert's weight in a multiplication, which runs the expert's layers instead."""

    def __init__(self, outputs: Outputs, transposed: bool) -> None:
        self._outputs, self._transposed = outputs, transposed

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs for some inputs: (..., in) to (..., out)."""
        return self._outputs(x)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """``F.linear(x, weight, bias)``, or ``x @ weight`` of a transposed one."""
        if len(args) > 1 and isinstance(args[1], ExpertWeight):
            x, weight, *more = args
            bias = next(iter([*more, *(kwargs or {}).values()]), None)
            if function is F.linear and not weight._transposed:
                y = weight.times(x)
                return y if bias is None else y + bias
            products = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
            if function in products and weight._transposed:
                return weight.times(x)
        raise NotImplementedError(f"an expert's weight has no {_name(function)}")


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", function))


def take_apart(model: torch.nn.Module, places: Mapping[str, Place]) -> None:
    """Give matrices the linear layers that their names say; weights are shared, not copied.

    Parameters
    ----------
    model
        Model, with weights or without.
    places
        All matrices of the layers that are taken apart, by name.

    Raises
    ------
    InputError
        When a layer holds more than these matrices, or others.
    """
    for owner, shared in shared_parameters(places).items():
        path, _, last = owner.rpartition(".")
        module: Any = model.get_submodule(path)
        found = tuple(getattr(module, last).shape)
        if found != shared.shape:
            raise InputError(f"{owner} is {found}, but its matrices make {shared.shape}")
        if None not in shared.entries:
            stack = _experts(model, shared, getattr(module, last))
            stack.implementation = run_experts_in_turn(module)
            delattr(module, last)
            setattr(module, last, stack)
            continue
        (names,) = shared.entries.values()
        layers = {name: _part(shared, name, module.weight) for name in names}
        if path in layers:  # the only one, transposed
            layers[path].bias = module.bias
            _put(model, path, layers[path])
            continue
        for name, layer in layers.items():
            _put(model, name, layer)
        fused = FusedLinear(_outputs(model, shared, names), module.bias)
        _put(model, path, fused.train(module.training))


def put_together(model: torch.nn.Module, places: Mapping[str, Place]) -> None:
    """Undo `take_apart`, for layers whose parts are all dense again."""
    for owner, shared in shared_parameters(places).items():
        path, _, last = owner.rpartition(".")
        weights = {name: _weight(model, name) for name in shared.slices}
        weight = torch.nn.Parameter(shared.joined(weights.__getitem__))
        old: Any = model.get_submodule(path)
        transposed = any(where.transposed for where in shared.slices.values())
        bias = None if None not in shared.entries else old.bias
        for name in shared.slices.keys() - {path}:
            _remove(model, name)
        if None not in shared.entries:
            run_experts_by(old, getattr(old, last).implementation)
            setattr(old, last, weight)
        else:
            _put(model, path, conv1d(weight, bias) if transposed else linear(weight, bias))


def routed_layers(block: torch.nn.Module) -> set[str]:
    """Names of the experts' layers in a block, which get the tokens that are routed to them."""
    inside = {
        id(layer)
        for module in block.modules()
        if isinstance(module, ExpertStack)
        for outputs in module.entries.values()
        for layer in outputs.layers()
    }
    return {name for name, module in block.named_modules() if id(module) in inside}


def _weight(model: torch.nn.Module, name: str) -> torch.Tensor:
    layer: Any = model.get_submodule(name)
    weight: torch.Tensor = layer.weight.detach()
    return weight


def _experts(model: torch.nn.Module, shared: SharedTensor, weight: torch.Tensor) -> ExpertStack:
    transposed = False
    entries: dict[int, Outputs] = {}
    for entry, names in shared.entries.items():
        assert entry is not None
        for name in names:
            _put(model, name, _part(shared, name, weight[entry]))
            transposed = shared.slices[name].transposed
        entries[entry] = _outputs(model, shared, names)
    return ExpertStack(entries, transposed)


def _part(shared: SharedTensor, name: str, weight: torch.Tensor) -> torch.nn.Linear:
    """The linear layer of a matrix."""
    own = shared.slices[name].of(weight.detach())
    return linear(torch.nn.Parameter(own, requires_grad=weight.requires_grad))


def _outputs(model: torch.nn.Module, shared: SharedTensor, names: Collection[str]) -> Outputs:
    """The outputs of matrices that share an entry."""
    folders = {name.rpartition(".")[0] for name in names}
    (folder,) = folders
    lasts = [name.rpartition(".")[2] for name in names]
    runs = [shared.slices[name].rows for name in names]
    return Outputs(model.get_submodule(folder), lasts, runs)


def _put(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    """Put a module at a path; modules above it are made if there are none."""
    *above, last = name.split(".")
    home = model
    for step in above:
        if getattr(home, step, None) is None:
            home.add_module(step, torch.nn.Module())
        home = getattr(home, step)
    setattr(home, last, module)


def _remove(model: torch.nn.Module, name: str) -> None:
    """Remove the module at a path, and those above it that hold nothing else."""
    path, _, last = name.rpartition(".")
    home: Any = model.get_submodule(path)
    if last in home._modules:
        del home._modules[last]
    if type(home) is torch.nn.Module and not home._modules:
        _remove(model, path)

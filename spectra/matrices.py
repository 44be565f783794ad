"""The matrices of a model, in the method's sense: linear layers inside transformer blocks.

A matrix is a whole weight or a part of one: experts that a model stores as one stacked parameter
are one matrix each, with gate and up separate.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from spectra.composites import Composite, composites
from spectra.transformers_internals import StackLayout, stack_layout
from spectra_data.errors import InputError

if TYPE_CHECKING:
    import torch

ROLES = {f"{role}_proj": role for role in ("q", "k", "v", "o", "gate", "up", "down")}
ROLES |= {"wq": "q", "wk": "k", "wv": "v", "wo": "o", "w1": "gate", "w3": "up", "w2": "down"}
QKV_PARTS = ("q_proj", "k_proj", "v_proj")
IN_PROJ = "in_proj_weight"
"""Name of the parameter in which `torch.nn.MultiheadAttention` holds q, then k, then v."""
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
LARGEST_SIDE = 1 << 40
"""Most entries along a dimension of a matrix; a file that states more is damaged."""
_ATTENTION = re.compile(r"att", re.IGNORECASE)
_BLOCK_INDEX = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Matrix:
    """A 2-D weight of a linear layer inside a transformer block."""

    name: str
    """Full path of the layer, e.g. ``model.layers.7.mlp.down_proj``."""
    layer: int
    """Index of the block."""
    role: str
    """``q k v o gate up down``, or the path's last component."""
    rows: int
    cols: int

    @property
    def full_rank(self) -> int:
        return min(self.rows, self.cols)

    @property
    def block(self) -> str:
        """Path of its block, which distinguishes blocks of the same index in two stacks:
        ``encoder.block.0`` and ``decoder.block.0``.
        """
        return block_of(self.name)


@dataclass(frozen=True)
class Weight:
    """Location of a matrix in a model: a parameter, a part of one, or a composite of several."""

    parameter: "torch.nn.Parameter | Composite"
    index: tuple[int | slice, ...] = field(default=())
    transposed: bool = False
    """Whether the parameter holds the matrix as (cols, rows)."""

    def of(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The matrix in a tensor shaped like the parameter, e.g. its gradient: (rows, cols)."""
        part = tensor[self.index] if self.index else tensor
        return part.mT if self.transposed else part

    @property
    def sources(self) -> "list[torch.nn.Parameter]":
        """The parameters of it that an optimizer sees."""
        parameter = self.parameter
        return parameter.stored if isinstance(parameter, Composite) else [parameter]

    @property
    def value(self) -> "torch.Tensor":
        """The weight itself, sharing memory with a parameter: (rows, cols)."""
        return self.of(self.parameter.detach())


@dataclass(frozen=True)
class Skipped:
    """A parameter that is not one of the matrices, and why."""

    name: str
    reason: str


def role_of(name: str) -> str:
    """Role of a matrix from its full name."""
    *above, last = name.split(".")
    if last == "wo" and above and not _ATTENTION.search(above[-1]):  # T5's feed-forward output
        return last
    return ROLES.get(last, last)


def block_of(name: str) -> str:
    """Path of the block in a full name: everything up to its first number."""
    match = _BLOCK_INDEX.search(f"{name}.")
    return name[: match.end(1)] if match else ""


def block_labels(names: Sequence[str]) -> list[int | str]:
    """Labels for tables and figures of the matrices' blocks, from the matrices' names.

    A label is the block's number; if a model has several stacks of blocks, it follows what
    distinguishes the stack: ``encoder 0`` and ``decoder 0``. Without a number it is empty.
    """
    blocks = [block_of(name) for name in names]
    stacks = {block: block.rpartition(".")[0].split(".") for block in blocks}
    paths = list(stacks.values())
    if all(path == paths[0] for path in paths):
        numbers = [block.rpartition(".")[2] for block in blocks]
        return [int(number) if number else "" for number in numbers]
    shortest = min(map(len, paths))
    alike = [len({path[i] for path in paths}) == 1 for i in range(shortest)]
    first = alike.index(False) if False in alike else shortest
    short = {block: ".".join(path[first:]) for block, path in stacks.items()}
    while len({s.rpartition(".")[2] for s in short.values()}) == 1 and any(
        "." in s for s in short.values()
    ):  # a common ending distinguishes nothing either
        short = {block: s.rpartition(".")[0] or s for block, s in short.items()}
    return [f"{short[block]} {block.rpartition('.')[2]}".strip() for block in blocks]


def in_order(labels: Iterable[int | str]) -> list[int | str]:
    """Labels of blocks, each once: numbers in ascending order, others in order of appearance."""
    found = list(dict.fromkeys(labels))
    numbers = [label for label in found if isinstance(label, int)]
    return sorted(numbers) if len(numbers) == len(found) else found


def usual_choice(names: Sequence[str], roles: Sequence[str]) -> list[str]:
    """The paper's choice of matrices: q and k of the first block, down and up of a middle one.

    Parameters
    ----------
    names, roles
        Names and roles of all matrices, in their order.

    Returns
    -------
    Names; fewer if the model lacks some of these roles.
    """
    labels = block_labels(names)
    rows = in_order(labels)
    first, middle = rows[0], rows[len(rows) // 2]
    keys = list(zip(labels, roles, strict=True))
    found = dict(zip(reversed(keys), reversed(names), strict=True))  # the first of each
    wanted = [(first, "q"), (first, "k"), (middle, "down"), (middle, "up")]
    return [found[key] for key in wanted if key in found]


def layer_of(name: str) -> int | None:
    """Index of the block in a full name; None outside the blocks."""
    match = _BLOCK_INDEX.search(f"{name}.")
    return int(match[1]) if match else None


def is_sharded(tensor: "torch.Tensor") -> bool:
    """Whether every process holds only a shard of it (FSDP2, tensor parallelism)."""
    import torch

    local = getattr(tensor, "to_local", None)
    return isinstance(tensor, torch.Tensor) and local is not None


def full_tensor(tensor: "torch.Tensor") -> "torch.Tensor":
    """The whole tensor; if it is sharded, every process must call this."""
    whole: torch.Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def unwrapped(model: "torch.nn.Module") -> "torch.nn.Module":
    """The model inside `torch.compile`, data-parallel wrappers and `peft`."""
    while True:
        inner: Any = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in (
            "DistributedDataParallel",
            "DataParallel",
            "FullyShardedDataParallel",
        ):
            inner = model.module
        if inner is None and _injects(model):
            inner = getattr(model.base_model, "model", None)
        if inner is None:
            return model
        model = inner


def _injects(model: Any) -> bool:
    """Whether a model is one of `peft` whose adapters are inside the model that it wraps."""
    tuner = getattr(model, "base_model", None)
    return hasattr(model, "peft_config") and hasattr(tuner, "merge_and_unload")


def find_matrices(
    model: "torch.nn.Module", patterns: str | Sequence[str] | None = None
) -> tuple[dict[Matrix, Weight], list[Skipped]]:
    """Find the weights of all linear layers inside transformer blocks, in the model's order.

    A weight shared by several layers is one matrix, under its first name. A low-rank layer of a
    compressed model is one matrix, too: the product that it stands for. A layer with adapters of
    `peft` is one matrix: the weight with the adapters merged in. Experts stacked into one parameter
    (Mixtral, Qwen-MoE and others in transformers) are matrices with names like
    ``model.layers.0.mlp.experts.3.gate_proj``.

    Parameters
    ----------
    model
        Any module, compiled, data-parallel or neither.
    patterns
        Names to keep, ``*`` and ``?`` allowed, e.g. ``"*.mlp.*"`` or a list of them; all by
        default.

    Returns
    -------
    Matrices with their weights, and every other parameter with the reason why it is left out.

    Raises
    ------
    InputError
        When the model has no such layer, or a pattern matches none.
    """
    model = unwrapped(model)
    found, skipped = _all_matrices(model)
    if not found:
        raise InputError(
            "the model has no linear layer inside a numbered block such as model.layers.0.mlp"
        )
    if patterns is None:
        return found, skipped
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in wanted:
        if not any(fnmatchcase(matrix.name, pattern) for matrix in found):
            raise InputError(
                f"matrices={pattern!r} matches none; names are like {next(iter(found)).name}"
            )
    kept = {m: w for m, w in found.items() if any(fnmatchcase(m.name, p) for p in wanted)}
    unselected = [Skipped(m.name, "not selected by matrices=") for m in found if m not in kept]
    return kept, skipped + unselected


def stored_parameters(matrices: Iterable[Weight]) -> int:
    """Number of stored parameters of some matrices; shared and low-rank ones count as stored."""
    return sum({id(p): p.numel() for weight in matrices for p in weight.sources}.values())


def _all_matrices(model: "torch.nn.Module") -> tuple[dict[Matrix, Weight], list[Skipped]]:
    import torch

    owners: dict[str, torch.nn.Module] = {}
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            owners[f"{path}.{name}"] = module
    composed = {_plain(path): composite for path, composite in composites(model).items()}
    parts = {id(p): path for path, composite in composed.items() for p in composite.stored}
    matrices: dict[Matrix, Weight] = {}
    skipped = []
    for parameter_name, parameter in model.named_parameters():
        name = _plain(parameter_name)
        owner = owners.get(parameter_name, model)
        layer = layer_of(name)
        conv1d = type(owner).__name__ == "Conv1D"
        linear = name.endswith(".weight") and (isinstance(owner, torch.nn.Linear) or conv1d)
        if linear and parameter.ndim != 2:
            skipped.append(Skipped(name, "not two-dimensional: flattened, or partitioned"))
            continue
        outer = parts.get(id(parameter))
        projections = list(_projections(name, parameter, owner))
        if outer is not None and layer is not None:
            if not any(m.name == outer for m in matrices):
                whole = composed[outer]
                matrices[Matrix(outer, layer, role_of(outer), *whole.shape)] = Weight(whole)
        elif not parameter.is_floating_point():
            skipped.append(Skipped(name, f"quantised ({parameter.dtype})"))
        elif linear and layer is None:
            skipped.append(Skipped(name, "outside the transformer blocks"))
        elif linear and layer is not None:
            shape = parameter.shape[::-1] if conv1d else parameter.shape
            path = name.removesuffix(".weight")
            matrix = Matrix(path, layer, role_of(path), *shape)
            matrices[matrix] = Weight(parameter, transposed=conv1d)
        elif layer is not None and projections:
            for path, weight in projections:
                shape = weight.value.shape
                matrices[Matrix(path, layer, role_of(path), *shape)] = weight
        elif layer is not None and parameter.ndim == 3 and (layout := stack_layout(owner)):
            for path, weight in _experts(name, parameter, layout):
                shape = weight.value.shape
                matrices[Matrix(path, layer, role_of(path), *shape)] = weight
        else:
            skipped.append(Skipped(name, "not the weight of a linear layer"))
    return matrices, skipped


def stacked_matrices(model: "torch.nn.Module") -> dict[str, tuple[str, Weight]]:
    """The experts' matrices that a model stacks: name of the parameter, and place in it."""
    found = {}
    for path, module in model.named_modules():
        layout = stack_layout(module)
        for last, parameter in module.named_parameters(recurse=False) if layout else ():
            name = f"{path}.{last}"
            if parameter.ndim == 3 and layer_of(name) is not None:
                assert layout is not None
                for matrix, weight in _experts(name, parameter, layout):
                    found[matrix] = name, weight
    return found


def _plain(path: str) -> str:
    """A path without the names of wrappers."""
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def _projections(
    name: str, parameter: "torch.nn.Parameter", owner: "torch.nn.Module"
) -> Iterator[tuple[str, Weight]]:
    """The matrices that `torch.nn.MultiheadAttention` holds in a parameter of its own."""
    import torch

    folder, _, last = name.rpartition(".")
    part = last.removesuffix("_weight")
    if not isinstance(owner, torch.nn.MultiheadAttention):
        return
    if last == IN_PROJ:
        side = parameter.shape[0] // len(QKV_PARTS)
        for number, projection in enumerate(QKV_PARTS):
            rows = slice(number * side, (number + 1) * side)
            yield f"{folder}.{projection}", Weight(parameter, (rows,))
    elif part != last and part in QKV_PARTS:
        yield f"{folder}.{part}", Weight(parameter)


def _experts(
    name: str, parameter: "torch.nn.Parameter", layout: StackLayout
) -> Iterator[tuple[str, Weight]]:
    """The matrices in a stack of experts: a parameter of three dimensions."""
    folder, last = name.rsplit(".", 1)
    transposed = layout.transposed
    out = parameter.shape[2 if transposed else 1]
    parts = {last: slice(None)}
    if last == "gate_up_proj":
        if layout.interleaved:
            parts = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
        else:
            parts = {"gate_proj": slice(0, out // 2), "up_proj": slice(out // 2, None)}
    for expert in range(parameter.shape[0]):
        for part, outputs in parts.items():
            index = (expert, slice(None), outputs) if transposed else (expert, outputs)
            yield f"{folder}.{expert}.{part}", Weight(parameter, index, transposed)

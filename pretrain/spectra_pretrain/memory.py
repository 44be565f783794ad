"""What a run trains, what it leaves alone, and the memory that each takes: counted beforehand."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from rich import box
from rich.table import Table

from spectra.allocation.rankmap import RankMap
from spectra.matrices import find_matrices
from spectra_pretrain.optimizers.galore import state_bytes
from spectra_pretrain.plan import readable_bytes

LRC, NLRC, MATRICES = "LRCs", "N-LRCs", "matrices"
NORMS, EMBEDDINGS, HEAD, ADAPTERS, OTHER = (
    "norms", "embeddings", "output head", "adapters", "other",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Parameters of one kind."""

    name: str
    trained: bool
    tensors: int
    parameters: int
    weight_bytes: int
    gradient_bytes: int = 0
    optimizer_bytes: int = 0


def kinds_of(model: torch.nn.Module, rank_map: RankMap | None) -> dict[int, str]:
    """What every parameter of a model is, by its identity.

    Parameters
    ----------
    model
        As its checkpoint gives it.
    rank_map
        Which matrices are LRCs; without one they are just matrices.
    """
    found: dict[int, str] = {}
    lrc = {module.name for module in rank_map.lrc} if rank_map is not None else set()
    matrices = find_matrices(model)[0]
    for matrix, weight in matrices.items():
        kind = MATRICES if rank_map is None else LRC if matrix.name in lrc else NLRC
        found |= {id(source): kind for source in weight.sources}
    owners = {matrix.name: weight for matrix, weight in matrices.items()}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in found:
                continue
            if name == "bias" and path in owners:
                found[id(parameter)] = found[id(owners[path].sources[0])]
            elif "norm" in type(module).__name__.lower():
                found[id(parameter)] = NORMS
            elif isinstance(module, torch.nn.Embedding):
                found[id(parameter)] = EMBEDDINGS
            elif isinstance(module, torch.nn.Linear):
                found[id(parameter)] = HEAD
            else:
                found[id(parameter)] = OTHER
    return found


def groups_of(
    model: torch.nn.Module, kinds: Mapping[int, str], *, galore_rank: int | None = None
) -> list[Group]:
    """Count parameters by kind, trained ones first.

    Parameters
    ----------
    model
        The model to be trained; its parameters say whether they are.
    kinds
        By identity; parameters that it lacks are adapters.
    galore_rank
        To which matrices' gradients are projected, if they are.
    """
    members: dict[tuple[bool, str], list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        key = (parameter.requires_grad, kinds.get(id(parameter), ADAPTERS))
        members.setdefault(key, []).append(parameter)
    ordered = sorted(members.items(), key=lambda item: (not item[0][0], _order(item[0][1])))
    return [
        _group(kind, trained, found, galore_rank if kind in (LRC, NLRC, MATRICES) else None)
        for (trained, kind), found in ordered
    ]


def total(groups: Iterable[Group], *, trained: bool) -> Group:
    """The sum over trained or frozen groups."""
    wanted = [group for group in groups if group.trained == trained]
    return Group(
        "trained" if trained else "frozen",
        trained,
        sum(g.tensors for g in wanted),
        sum(g.parameters for g in wanted),
        sum(g.weight_bytes for g in wanted),
        sum(g.gradient_bytes for g in wanted),
        sum(g.optimizer_bytes for g in wanted),
    )


def table_of(groups: list[Group]) -> Table:
    """Groups as a table for a terminal or a log."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("tensors", "parameters", "weights", "gradients", "optimizer"):
        table.add_column(column, justify="right", no_wrap=True)
    for trained in (True, False):
        of_kind = [group for group in groups if group.trained == trained]
        if not of_kind:
            continue
        for group in of_kind:
            table.add_row(*_cells(group, f"{'trained' if trained else 'frozen'} {group.name}"))
        if len(of_kind) > 1:
            table.add_row(*_cells(total(of_kind, trained=trained), "together"), style="bold")
        table.add_section()
    return table


def _cells(group: Group, name: str) -> list[str]:
    sizes = (group.weight_bytes, group.gradient_bytes, group.optimizer_bytes)
    counts = [f"{group.tensors:,}", f"{group.parameters:,}"]
    return [name, *counts, *(readable_bytes(size) if size else "-" for size in sizes)]


def _group(
    name: str, trained: bool, parameters: list[torch.nn.Parameter], galore_rank: int | None
) -> Group:
    weights = sum(p.numel() * p.element_size() for p in parameters)
    moments = sum(
        state_bytes(p, galore_rank) if p.dtype == torch.float32 else 8 * p.numel()
        for p in parameters
    )
    return Group(
        name,
        trained,
        len(parameters),
        sum(p.numel() for p in parameters),
        weights,
        weights if trained else 0,
        moments if trained else 0,
    )


def _order(kind: str) -> int:
    return (LRC, NLRC, MATRICES, ADAPTERS, NORMS, EMBEDDINGS, HEAD, OTHER).index(kind)

"""Trained and frozen parameters of a run, and the memory of each: counted beforehand."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from rich import box
from rich.filesize import decimal
from rich.table import Table

from spectra_pretrain.kinds import ORDER, kind_of


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


def groups_of(
    model: torch.nn.Module,
    kinds: Mapping[int, str],
    state_bytes: Callable[[torch.nn.Parameter], int],
) -> list[Group]:
    """Count parameters by kind, trained ones first.

    Parameters
    ----------
    model
        The model to be trained; its parameters say whether they are.
    kinds
        Kinds by identity; parameters that it lacks are adapters.
    state_bytes
        Bytes that the optimizer holds for a parameter.
    """
    members: dict[tuple[bool, str], list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        key = (parameter.requires_grad, kind_of(parameter, kinds))
        members.setdefault(key, []).append(parameter)
    ordered = sorted(members.items(), key=lambda item: (not item[0][0], ORDER.index(item[0][1])))
    return [_group(kind, trained, found, state_bytes) for (trained, kind), found in ordered]


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


def sizes(groups: list[Group]) -> dict[str, int]:
    """Parameters, and bytes of weights, gradients and optimizer state."""
    trained, frozen = total(groups, trained=True), total(groups, trained=False)
    return {
        "trained_parameters": trained.parameters,
        "parameters": trained.parameters + frozen.parameters,
        "weight_bytes": trained.weight_bytes + frozen.weight_bytes,
        "gradient_bytes": trained.gradient_bytes,
        "optimizer_bytes": trained.optimizer_bytes,
    }


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
            table.add_row(*_cells(total(of_kind, trained=trained), "total"), style="bold")
        table.add_section()
    return table


def _cells(group: Group, name: str) -> list[str]:
    sizes = (group.weight_bytes, group.gradient_bytes, group.optimizer_bytes)
    counts = [f"{group.tensors:,}", f"{group.parameters:,}"]
    return [name, *counts, *(decimal(size) if size else "-" for size in sizes)]


def _group(
    name: str,
    trained: bool,
    parameters: list[torch.nn.Parameter],
    state_bytes: Callable[[torch.nn.Parameter], int],
) -> Group:
    weights = sum(p.numel() * p.element_size() for p in parameters)
    return Group(
        name,
        trained,
        len(parameters),
        sum(p.numel() for p in parameters),
        weights,
        weights if trained else 0,
        sum(map(state_bytes, parameters)) if trained else 0,
    )

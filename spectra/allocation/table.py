"""A rank map as a table to read."""

from typing import TYPE_CHECKING

from spectra.matrices import block_labels, in_order

if TYPE_CHECKING:
    from spectra.allocation.rankmap import Module, RankMap


def to_table(rank_map: "RankMap") -> str:
    """A table to read: layers down, roles across, the share of ranks kept; ``*`` marks LRCs."""
    roles = list(dict.fromkeys(module.role for module in rank_map.modules))
    labels = block_labels([module.name for module in rank_map.modules])
    cells: dict[tuple[int | str, str], list[Module]] = {}
    for label, module in zip(labels, rank_map.modules, strict=True):
        cells.setdefault((label, module.role), []).append(module)
    lines = [_summary(rank_map), "", "rank as % of full rank; * LRC", ""]
    width = max(5, *(len(str(label)) for label in labels))
    lines.append(f"{'layer':>{width}}" + "".join(f"{role[:9]:>10}" for role in roles))
    for label in in_order(labels):
        row = [_cell(cells.get((label, role), [])) for role in roles]
        lines.append(f"{label:>{width}}" + "".join(f"{cell:>10}" for cell in row))
    return "\n".join(lines) + "\n"


def _summary(rank_map: "RankMap") -> str:
    cut = "" if rank_map.threshold is None else f", threshold {rank_map.threshold:.4f}"
    about = " (approximate spectra)" if rank_map.approximate else ""
    return (
        f"{rank_map.model.name or 'a checkpoint'}: {rank_map.method}{about}, "
        f"ERR {rank_map.err:.4f}, budget {rank_map.budget:.4f}{cut}, "
        f"{len(rank_map.lrc)} LRC and {len(rank_map.nlrc)} N-LRC"
    )


def _cell(modules: "list[Module]") -> str:
    if not modules:
        return "-"
    share = sum(m.rank for m in modules) / sum(m.full_rank for m in modules)
    low = sum(module.kind == "LRC" for module in modules)
    mark = "*" if low == len(modules) else f"({low})" if low else ""
    return f"{100 * share:.0f}{mark or ' '}"

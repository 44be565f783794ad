"""A rank map, changed to what a compressed checkpoint holds."""

import dataclasses
from collections.abc import Mapping, Sequence

from spectra.allocation.costs import factored_parameters
from spectra.allocation.rankmap import Module, RankMap
from spectra.allocation.target import Target
from spectra.matrices import Matrix


def stored_map(
    rank_map: RankMap,
    *,
    storage: str | None = None,
    whole: Mapping[str, str] | None = None,
    errors: Mapping[str, float] | None = None,
    stored_as: str | None = None,
) -> RankMap:
    """The same ranks, stored otherwise.

    Parameters
    ----------
    rank_map
        The map.
    storage
        How factors are stored; as the map says by default.
    whole
        Matrices that stay whole, with the reasons.
    errors
        Relative errors that were measured, by name.
    stored_as
        The format of parameters, as safetensors calls it.

    Returns
    -------
    A map whose parameters and budget are those of what is stored; factors that would cost more
    than the matrix are left out.
    """
    storage = storage or rank_map.storage
    modules = []
    for m in rank_map.modules:
        cost = int(factored_parameters(m.rows, m.cols, m.rank, storage))
        factored = m.factored and m.name not in (whole or {}) and cost < m.params_dense
        error = (errors or {}).get(m.name, m.relative_error) if factored else 0.0
        modules.append(
            dataclasses.replace(
                m,
                factored=factored,
                params=cost if factored else m.params_dense,
                relative_error=min(error, 1.0),
            )
        )
    dense = sum(m.params_dense for m in modules)
    return dataclasses.replace(
        rank_map,
        storage=storage,
        modules=tuple(modules),
        budget=sum(m.params for m in modules) / dense,
        format=stored_as or rank_map.format,
    )


def with_whole(rank_map: RankMap, matrices: Sequence[Matrix], target: Target) -> RankMap:
    """The same map over more matrices, which it leaves whole.

    Parameters
    ----------
    rank_map
        Of some of them.
    matrices
        All of them, in their order.
    target
        What was to be reached, over all.
    """
    known = {module.name: module for module in rank_map.modules}
    modules = tuple(known.get(matrix.name) or _whole(matrix) for matrix in matrices)
    full = sum(m.full_rank for m in modules)
    return dataclasses.replace(
        rank_map,
        modules=modules,
        err=sum(m.full_rank - m.rank for m in modules) / full,
        budget=sum(m.params for m in modules) / sum(m.params_dense for m in modules),
        asked=target.asked(),
    )


def _whole(matrix: Matrix) -> Module:
    full, dense = matrix.full_rank, matrix.rows * matrix.cols
    return Module(
        matrix.name, matrix.layer, matrix.role, matrix.rows, matrix.cols,
        full, full, "N-LRC", False, 0.0, dense, dense,
    )  # fmt: skip

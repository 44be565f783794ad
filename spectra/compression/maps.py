"""Rank maps, adapted to the contents of a compressed checkpoint."""

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
    """The map of the same ranks, stored in another way.

    Parameters
    ----------
    rank_map
        Rank map.
    storage
        Storage of factors; that of the map by default.
    whole
        Matrices that stay whole, with the reasons.
    errors
        Measured relative errors, by name.
    stored_as
        Format of parameters, by its name in safetensors.

    Returns
    -------
    A map with the stored parameters and budget; a matrix stays whole if its factors would cost
    more.
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
    """The map extended to more matrices, which stay whole.

    Parameters
    ----------
    rank_map
        Rank map of some of the matrices.
    matrices
        All matrices, in their order.
    target
        Target over all matrices.
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

"""Kinds of a model's parameters: low-rank components and other matrices, norms, embeddings."""

from collections.abc import Collection, Mapping

import torch

from spectra.allocation.rankmap import RankMap
from spectra.matrices import find_matrices

LRC, NLRC, MATRICES = "LRCs", "N-LRCs", "matrices"
NORMS, EMBEDDINGS, HEAD, ADAPTERS, OTHER = (
    "norms", "embeddings", "output head", "adapters", "other",
)  # fmt: skip
ORDER = (LRC, NLRC, MATRICES, ADAPTERS, NORMS, EMBEDDINGS, HEAD, OTHER)
IN_BLOCKS = (LRC, NLRC, MATRICES)


def kinds_of(model: torch.nn.Module, rank_map: RankMap | None) -> dict[int, str]:
    """The kind of every parameter of a model, by identity.

    Parameters
    ----------
    model
        A model as loaded from its checkpoint.
    rank_map
        Says which matrices are LRCs; without one they are just matrices.
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


def kind_of(parameter: torch.nn.Parameter, kinds: Mapping[int, str]) -> str:
    """The kind of a parameter; one that `kinds` lacks belongs to an adapter."""
    return kinds.get(id(parameter), ADAPTERS)


def matrices_of(model: torch.nn.Module, kinds: Mapping[int, str]) -> Collection[int]:
    """The identities of matrices in blocks, and of adapters' parameters."""
    wanted = (*IN_BLOCKS, ADAPTERS)
    return {id(p) for p in model.parameters() if kind_of(p, kinds) in wanted}

r"""Ranks for a budget of parameters, by the expected increase of the loss.

With inputs and gradients whitened, the squared singular values that are cut off sum to twice the
expected increase of the loss in nats per token, to second order and layer by layer, in the same
unit for every matrix. So ranks are chosen for all matrices together: the least sum under the
budget.
"""

import functools
from collections.abc import Callable, Collection, Sequence

import numpy as np

from spectra.allocation.allocate import Maker
from spectra.allocation.budget import least_parameters, parameters_within
from spectra.allocation.candidates import Candidate, Candidates
from spectra.allocation.methods.registry import LOSS
from spectra.allocation.options import AllocationSettings
from spectra.allocation.rankmap import RankMap
from spectra.allocation.target import Target
from spectra.checkpoint.checkpoint import Checkpoint, Tensors
from spectra.compression.maps import with_whole
from spectra.compression.weighting import Weightings
from spectra.matrices import Matrix
from spectra_data.errors import InputError


def allocate_by_loss(
    checkpoint: Checkpoint,
    source: Tensors,
    weightings: Weightings,
    budget: float,
    *,
    storage: str,
    align: int,
    whole: frozenset[str],
    progress: Callable[[str, int, int], None],
) -> RankMap:
    """The map of least expected loss under a budget.

    Parameters
    ----------
    checkpoint
        Checkpoint of the matrices.
    source
        Tensors from which the matrices are read.
    weightings
        Weightings of errors: with those of ``fisher`` the sum is the loss itself, with others the
        weighted error.
    budget
        Fraction of block parameters to stay within.
    storage, align
        Storage of factors, and the multiple to which ranks are rounded down.
    whole
        Names of matrices that stay whole, at the expense of the others.
    progress
        Called with the number of matrices done.

    Raises
    ------
    InputError
        When the budget cannot be reached, or a matrix's spectrum is not finite.
    """
    require_reachable(checkpoint.matrices, budget, storage=storage, align=align, whole=whole)
    free = [m for m in checkpoint.matrices if m.name not in whole]
    total = sum(m.rows * m.cols for m in checkpoint.matrices)
    room = sum(m.rows * m.cols for m in free)
    share = (budget * total - (total - room)) / room if room else 0.0
    found = loss_candidates(checkpoint, free, source, weightings, progress)
    rank_map = map_of_least_loss(found, share, storage, align)
    return with_whole(rank_map, list(checkpoint.matrices), Target("budget", budget))


def require_reachable(
    matrices: Collection[Matrix], budget: float, *, storage: str, align: int, whole: frozenset[str]
) -> None:
    """Require a budget that ranks can meet, which their shapes tell.

    Parameters
    ----------
    matrices
        All matrices of the checkpoint.
    budget, storage, align, whole
        See `allocate_by_loss`.

    Raises
    ------
    InputError
        With the smallest budget that can be reached.
    """
    total = sum(m.rows * m.cols for m in matrices)
    free = [m for m in matrices if m.name not in whole]
    room = sum(m.rows * m.cols for m in free)
    least = total - room + least_parameters(free, storage, align)
    if parameters_within(budget, total) >= least:
        return
    fixed = f"{1 - room / total:.1%} of the block parameters are in layers that stay whole"
    why = f"{fixed}, so ranks allow" if room < total else "ranks allow"
    raise Target("budget", budget).unreachable(why, least / total)


def loss_candidates(
    checkpoint: Checkpoint,
    matrices: Sequence[Matrix],
    source: Tensors,
    weightings: Weightings,
    progress: Callable[[str, int, int], None],
) -> Candidates:
    """Matrices with their weighted spectra; see `allocate_by_loss`."""
    each = []
    for done, matrix in enumerate(matrices):
        read = functools.partial(source.read, f"{matrix.name}.weight")
        values = weightings.of(matrix.name).spectrum(read).cpu().numpy()
        if not np.isfinite(values).all():
            raise InputError(f"{matrix.name}: its weight or statistics are not finite")
        each.append(Candidate(matrix, values))
        progress("matrices weighed", done + 1, len(matrices))
    sha256 = weightings.about.get("checkpoint_sha256") or checkpoint.sha256()
    model = {"name": checkpoint.name, "revision": checkpoint.revision, "sha256": sha256}
    return Candidates(tuple(each), model, checkpoint.format, fused=checkpoint.fused, weighted=True)


def map_of_least_loss(candidates: Candidates, budget: float, storage: str, align: int) -> RankMap:
    """The map of least expected loss for candidates with weighted spectra."""
    settings = AllocationSettings(method=LOSS, storage=storage, align=align)
    return Maker(candidates, settings).map(Target("budget", budget))

"""Whether a rank map fits a checkpoint: names, shapes, and optionally the weights themselves."""

from collections.abc import Iterator

from spectra.allocation.rankmap import RankMap
from spectra.checkpoint.checkpoint import Checkpoint
from spectra_data.errors import InputError

SHOWN = 6


def require_fit(rank_map: RankMap, checkpoint: Checkpoint, *, weights: bool = True) -> None:
    """Require that a map was made for a checkpoint.

    Parameters
    ----------
    rank_map
        Rank map.
    checkpoint
        Checkpoint to compress.
    weights
        Whether to compare the hash of all weights as well, which reads them.

    Raises
    ------
    InputError
        With a list of the differences.
    """
    found = list(_differences(rank_map, checkpoint))
    known = rank_map.model.sha256
    if not found and weights and known is not None:
        now = checkpoint.sha256()
        if now != known:
            found.append(f"its weights hash to {now[:12]}…, the map was made for {known[:12]}…")
    if found:
        more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        lines = "".join(f"\n  {line}" for line in found[:SHOWN])
        raise InputError(f"the rank map does not fit {checkpoint.name}:{lines}{more}")


def _differences(rank_map: RankMap, checkpoint: Checkpoint) -> Iterator[str]:
    held = {matrix.name: matrix for matrix in checkpoint.matrices}
    named = {module.name: module for module in rank_map.modules}
    for name in sorted(named.keys() - held.keys()):
        yield f"{name} is in the map, but not in the checkpoint"
    for name in sorted(held.keys() - named.keys()):
        yield f"{name} is in the checkpoint, but not in the map"
    for name in sorted(named.keys() & held.keys()):
        module, matrix = named[name], held[name]
        if (module.rows, module.cols) != (matrix.rows, matrix.cols):
            yield (
                f"{name} is {matrix.rows} x {matrix.cols} in the checkpoint, but "
                f"{module.rows} x {module.cols} in the map"
            )

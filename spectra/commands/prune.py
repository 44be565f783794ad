"""Set entries of a checkpoint's matrices, or of those that stayed dense, to zero.

In a compressed checkpoint, only matrices that are stored whole are pruned; --only nlrc prunes just
the N-LRCs of its map (or of --map), as in the paper's figure 7. The result has the format of the
checkpoint, with pruning.json next to it.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from spectra.calibration.options import Calibration
from spectra.commands.compress import left_lines
from spectra.commands.options import parse
from spectra.keywords import Share
from spectra.machine.console import Console
from spectra.machine.devices import device_of
from spectra.machine.progress import Shown
from spectra.pruning.methods import Method

if TYPE_CHECKING:
    from spectra.allocation.rankmap import RankMap
    from spectra.pruning.sparsity import Pattern


@dataclass(frozen=True)
class Options:
    """Options of `spectra prune`."""

    checkpoint: tyro.conf.Positional[str]
    """Checkpoint to prune: a folder, compressed or not, a .gguf file, or a hub name."""
    out: Path
    """Folder to write."""
    sparsity: Share | None = None
    """Share of entries to set to zero, e.g. 0.5; or name --pattern."""
    pattern: str | None = None
    """Pattern n:m, e.g. 2:4: n of every m neighbours are kept, as hardware requires."""
    method: Method = "wanda"
    """Method of pruning. magnitude: the smallest entries; wanda: the smallest times their inputs'
    size; sparsegpt: the others make up for what is removed."""
    only: Literal["nlrc"] | None = None
    """Matrices to prune: nlrc for the N-LRCs only; by default all that are stored whole."""
    map: Path | None = None
    """Rank map that says which matrices are N-LRCs, for --only nlrc on a dense checkpoint."""
    calibration: Calibration = field(default_factory=Calibration)
    device: str | None = None
    """Device to compute on, cpu or cuda; by default cuda if available."""
    dry_run: bool = False
    """Print what it will read, need and take, timed on samples; write nothing."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="prune", description=__doc__)
    from spectra.allocation.rankmap import RankMap
    from spectra.pruning.prune import prune
    from spectra.pruning.sparsity import parse_pattern

    pattern = parse_pattern(options.sparsity, options.pattern)
    rank_map = None if options.map is None else RankMap.load(options.map)
    if options.dry_run:
        return _forecast(options, pattern, rank_map)
    with Shown(Console(stderr=True)) as shown:
        made = prune(
            options.checkpoint,
            options.out,
            pattern,
            method=options.method,
            only=options.only,
            rank_map=rank_map,
            calibration=options.calibration,
            device=str(device_of(options.device)),
            progress=shown.update,
        )
    found = {
        "method": options.method,
        "sparsity_asked": pattern.sparsity,
        "sparsity": made.sparsity,
        "pruned": len(made.matrices),
        "kept": made.kept,
        "bytes": made.bytes,
        "out": str(made.path),
    }
    for line in left_lines(made.left):
        print(line, file=sys.stderr)
    if options.json:
        print(json.dumps(found))
        return 0
    print(
        f"{made.sparsity:.2%} zeros in {len(made.matrices)} matrices by {options.method}; "
        f"{made.kept} left unchanged"
    )
    print(f"wrote {made.path}")
    return 0


def _forecast(options: Options, pattern: "Pattern", rank_map: "RankMap | None") -> int:
    from spectra.commands.forecasts import show
    from spectra.forecasting.prune import prune_forecast
    from spectra.pruning.prune import make_draft

    started = time.perf_counter()
    draft = make_draft(options.checkpoint, options.only, rank_map)
    matrices = [m for m in draft.source.checkpoint.matrices if m.name in draft.wanted]
    given = draft.source, matrices, pattern, options.method, options.calibration
    forecast = prune_forecast(*given, opening=time.perf_counter() - started)
    return show(forecast, options.out, options.json, str(device_of(options.device)))

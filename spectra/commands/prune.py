"""Put zeros into a checkpoint's matrices, or into those that stayed dense.

Of a compressed checkpoint only what is stored whole is pruned; --only nlrc takes the N-LRCs of its
map (or of --map) alone: the paper's figure 7. The result is in the format of what was pruned, with
pruning.json beside it.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from spectra.allocation.rankmap import RankMap
from spectra.calibration.options import Calibration
from spectra.commands.compress import left_lines
from spectra.commands.options import parse
from spectra.machine.devices import device_of
from spectra.machine.progress import Shown
from spectra.pruning.prune import prune
from spectra.pruning.sparsity import parse_pattern


@dataclass(frozen=True)
class Options:
    """Options of `spectra prune`."""

    checkpoint: tyro.conf.Positional[str]
    """Checkpoint: a folder, compressed or not, a .gguf file, or a hub name."""
    out: Path
    """Folder to write."""
    sparsity: float | None = None
    """Share of entries that become zero, e.g. 0.5."""
    pattern: str | None = None
    """n:m, e.g. 2:4: that many kept of every so many neighbours, as hardware wants it."""
    method: Literal["magnitude", "wanda", "sparsegpt"] = "wanda"
    """magnitude: the smallest entries; wanda: the smallest times their inputs' size; sparsegpt: the
    others make up for what is removed."""
    only: Literal["nlrc"] | None = None
    """Prune N-LRCs only."""
    map: Path | None = None
    """Rank map that says which matrices are N-LRCs, for --only nlrc of a dense checkpoint."""
    calibration: Calibration = field(default_factory=Calibration)
    device: str | None = None
    """Device to compute on, cpu or cuda; cuda where there is one, by default."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="prune", description=__doc__)
    pattern = parse_pattern(options.sparsity, options.pattern)
    with Shown(Console(stderr=True)) as shown:
        made = prune(
            options.checkpoint,
            options.out,
            pattern,
            method=options.method,
            only=options.only,
            rank_map=None if options.map is None else RankMap.load(options.map),
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
        f"{made.kept} left as they are"
    )
    print(f"wrote {made.path}")
    return 0

"""Choose a rank for every matrix of a scanned checkpoint, or of a run's last state.

Name one target: --err, --budget, or --threshold. The map written to --out states all three, as
requested and as reached; `spectra export` converts it to the formats of other tools.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from spectra.allocation.methods.registry import METHODS
from spectra.allocation.options import Allocation
from spectra.commands.options import parse
from spectra_data.errors import InputError
from spectra_data.reading import read_json
from spectra_data.sources import TEXT_FIELD

if TYPE_CHECKING:
    from spectra.allocation.rankmap import RankMap


@dataclass(frozen=True)
class Options:
    """Options of `spectra allocate`."""

    store: tyro.conf.Positional[str]
    """Store of a scan or a run, e.g. scan.zarr."""
    out: Path | None = None
    """File to write the map to; by default the map is only printed."""
    allocation: Allocation = field(default_factory=Allocation)
    outliers: Path | None = None
    """JSON file {block: share of outliers}, for owl; or name --checkpoint and --calibration."""
    checkpoint: str | None = None
    """Checkpoint whose outliers owl counts: a Hugging Face folder, .gguf file or hub name."""
    calibration: str | None = None
    """Text that owl counts outliers on, e.g. pydocs or a file: 16 windows of 512 tokens."""
    text_field: str = TEXT_FIELD
    """Field or column of --calibration that holds the text."""
    step: int | None = None
    """Step of the snapshot; the last by default."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="allocate", description=__doc__)
    from spectra.allocation.allocate import allocate
    from spectra.allocation.costs import require_storage
    from spectra.store.destination import messages_beside, require_writable

    if options.text_field != TEXT_FIELD and options.calibration is None:
        raise InputError("--text-field goes with --calibration: leave it out")
    allocation = options.allocation
    require_storage(allocation.storage)
    if options.out is not None:
        require_writable(options.out)
    rank_map = allocate(options.store, allocation, outliers=_outliers(options), step=options.step)
    if options.out is not None:
        rank_map.save(options.out)
    if options.json:
        print(json.dumps(_report(rank_map, options)))
        return 0
    with messages_beside(options.out):
        print(rank_map, end="\n\n")
        _print_totals(rank_map)
        if options.out is not None:
            print(f"wrote {options.out}")
    return 0


def _report(rank_map: "RankMap", options: Options) -> dict[str, Any]:
    return {
        "method": rank_map.method,
        "err_asked": rank_map.asked["err"],
        "budget_asked": rank_map.asked["budget"],
        "threshold_asked": rank_map.asked["threshold"],
        "err": rank_map.err,
        "err_stored": rank_map.err_stored,
        "budget": rank_map.budget,
        "threshold": rank_map.threshold,
        "lrc": len(rank_map.lrc),
        "nlrc": len(rank_map.nlrc),
        "parameters": rank_map.parameters,
        "bytes": rank_map.bytes,
        "approximate": rank_map.approximate,
        "out": None if options.out is None else str(options.out),
    }


def _print_totals(rank_map: "RankMap") -> None:
    dense = sum(module.params_dense for module in rank_map.modules)
    print(
        f"{rank_map.parameters:,} of {dense:,} block parameters, {rank_map.bytes / 1e9:.3g} GB as "
        f"{rank_map.format}; the map removes {rank_map.err:.2%} of the ranks, "
        f"{rank_map.err_stored:.2%} as stored, where N-LRCs stay whole"
        if METHODS[rank_map.method].lrcs_alone
        else f"{rank_map.parameters:,} of {dense:,} block parameters, "
        f"{rank_map.bytes / 1e9:.3g} GB as {rank_map.format}"
    )


def _outliers(options: Options) -> dict[str, float] | None:
    path = options.outliers
    given = {
        "--outliers": path,
        "--checkpoint": options.checkpoint,
        "--calibration": options.calibration,
    }
    method = options.allocation.method
    if "outliers" not in METHODS[method].needs:
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{method} counts no outliers: leave {name} out")
        return None
    if path is not None:
        read = read_json(path)
        try:
            return {str(block): float(share) for block, share in read.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not a JSON object of shares by block: {error}") from error
    if options.checkpoint is None or options.calibration is None:
        raise InputError(
            f"{method} counts outliers: name --checkpoint and --calibration, or --outliers"
        )
    from spectra.calibration.outliers import outliers_on_text

    return outliers_on_text(
        options.checkpoint,
        options.calibration,
        windows=16,
        length=512,
        text_field=options.text_field,
    )

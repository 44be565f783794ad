"""Give every matrix of a scanned checkpoint, or of a run's last state, a rank.

Name one target: --err, --budget, or --threshold. The map that is written to --out states all three,
asked and reached; `spectra export` turns it into what other tools read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from spectra.allocation.allocate import allocate
from spectra.allocation.costs import require_storage
from spectra.allocation.methods.registry import DEFAULT, METHODS, Need, offered
from spectra.allocation.rankmap import RankMap
from spectra.commands.options import parse
from spectra.exports.formats import to_table
from spectra.storages.registry import DEFAULT_STORAGE, STORAGES
from spectra.store.destination import messages_beside
from spectra_data.errors import InputError

GIVEN: tuple[Need, ...] = ("outliers",)
"""What the command can give a method beside the spectra."""


@dataclass(frozen=True)
class Options:
    """Options of `spectra allocate`."""

    store: tyro.conf.Positional[str]
    """Store of a scan or a run, e.g. scan.zarr."""
    err: float | None = None
    """Effective rank reduction to reach: removed ranks over all ranks, e.g. 0.5."""
    budget: float | None = None
    """Fraction of block parameters to stay within, e.g. 0.8."""
    threshold: float | None = None
    """WeLore's cut on normalised singular values, e.g. 0.175."""
    out: Path | None = None
    """File of the map to write; none by default, which only prints it."""
    method: Annotated[
        str,
        tyro.conf.arg(
            constructor_factory=lambda: Literal[offered(*GIVEN)],
            help=f"Method that gives the ranks. {METHODS.help(offered(*GIVEN))}.",
            help_behavior_hint=f"(default: {DEFAULT})",
        ),
    ] = DEFAULT
    normalisation: Literal["minmax", "max"] = "minmax"
    """Normalisation of singular values, for welore: from the least to the largest, or by the
    largest."""
    lrc_factor: float = 0.5
    """Fraction of its full rank below which a matrix is an LRC."""
    storage: Annotated[
        str,
        tyro.conf.arg(
            metavar=f"{{{','.join(STORAGES)}}}",
            help=f"Storage of factored matrices. {STORAGES.help()}.",
        ),
    ] = DEFAULT_STORAGE
    align: int = 1
    """Ranks of factored matrices are multiples of this, e.g. 8 or 16."""
    outliers: Path | None = None
    """JSON file {block: share of outliers}, for owl; or name the next two instead."""
    checkpoint: str | None = None
    """Model whose outliers are counted, for owl: a Hugging Face folder, GGUF file or hub name."""
    calibration: str | None = None
    """Text that outliers are counted on, for owl, e.g. pydocs or a file; 16 windows of 512
    tokens."""
    step: int | None = None
    """Step of the snapshot; the last by default."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="allocate", description=__doc__)
    require_storage(options.storage)
    rank_map = allocate(
        options.store,
        err=options.err,
        budget=options.budget,
        threshold=options.threshold,
        method=options.method,
        normalisation=options.normalisation,
        lrc_factor=options.lrc_factor,
        storage=options.storage,
        align=options.align,
        outliers=_outliers(options),
        step=options.step,
    )
    if options.out is not None:
        rank_map.save(options.out)
    if options.json:
        print(json.dumps(_report(rank_map, options)))
        return 0
    with messages_beside(options.out):
        print(to_table(rank_map))
        _print_totals(rank_map)
        if options.out is not None:
            print(f"wrote {options.out}")
    return 0


def _report(rank_map: RankMap, options: Options) -> dict[str, Any]:
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


def _print_totals(rank_map: RankMap) -> None:
    dense = sum(module.params_dense for module in rank_map.modules)
    print(
        f"{rank_map.parameters:,} of {dense:,} block parameters, {rank_map.bytes / 1e9:.3g} GB as "
        f"{rank_map.format}; of the ranks, {rank_map.err:.2%} are removed by the map, "
        f"{rank_map.err_stored:.2%} in what is stored, where N-LRCs stay whole"
        if METHODS[rank_map.method].lrcs_alone
        else f"{rank_map.parameters:,} of {dense:,} block parameters, "
        f"{rank_map.bytes / 1e9:.3g} GB as {rank_map.format}"
    )


def _outliers(options: Options) -> dict[str, float] | None:
    path = options.outliers
    if path is not None:
        try:
            read = json.loads(path.read_text())
            return {str(block): float(share) for block, share in read.items()}
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no JSON object of blocks and shares: {error}") from error
    if "outliers" not in METHODS[options.method].needs:
        return None
    if options.checkpoint is None or options.calibration is None:
        raise InputError(
            f"{options.method} counts outliers: name --checkpoint and --calibration, or --outliers"
        )
    from spectra.calibration.outliers import outliers_on_text

    return outliers_on_text(options.checkpoint, options.calibration, windows=16, length=512)

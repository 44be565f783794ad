"""Make a smaller version of a checkpoint, by a rank map or to a budget.

With --map, the default is the paper's data-free SVD, and every --method accepts the same map.
With --budget, ranks are allocated on the way by the expected loss from truncation, and method,
allocation and storage are those that measured best: one command for the best model of a size. It
needs no data: without --calibration it calibrates on text that the model itself writes. The result
is a Hugging Face folder: after `import spectra`, AutoModelForCausalLM.from_pretrained(DIR) loads
it, and `spectra merge` turns it into a dense checkpoint.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from spectra.commands.options import parse
from spectra.compression.settings import Compression
from spectra.machine.console import Console
from spectra.machine.devices import device_of
from spectra.machine.memory import peak_memory_bytes
from spectra.machine.progress import Shown
from spectra_data.errors import InputError

if TYPE_CHECKING:
    from spectra.compression.compress import Compressed


@dataclass(frozen=True)
class Options:
    """Options of `spectra compress`."""

    checkpoint: tyro.conf.Positional[str]
    """Checkpoint to compress: a Hugging Face folder, a .gguf file, or a hub name."""
    out: Path
    """Folder to write; after an interruption, the same command resumes there."""
    map: Path | None = None
    """Rank map, as `spectra allocate` writes it; or name --budget instead."""
    compression: Compression = field(default_factory=Compression)
    device: str | None = None
    """Device of calibration and decompositions, cpu or cuda; by default cuda if available."""
    skip_hash: bool = False
    """Skip comparing hashes: the map may be of other weights with the same names and shapes."""
    dry_run: bool = False
    """Print what it will read, need and take, timed on samples; write nothing."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="compress", description=__doc__)
    wanted = options.compression
    if (options.map is None) == (wanted.budget is None):
        raise InputError("name either --map or --budget (see `spectra compress --help`)")
    from spectra.allocation.rankmap import RankMap
    from spectra.compression.compress import compress

    if options.dry_run:
        return _forecast(options)
    started = time.perf_counter()
    with Shown(Console(stderr=True)) as shown:
        made = compress(
            options.checkpoint,
            None if options.map is None else RankMap.load(options.map),
            options.out,
            wanted,
            device=str(device_of(options.device)),
            check_weights=not options.skip_hash,
            progress=shown.update,
        )
    seconds = time.perf_counter() - started
    if options.json:
        print(json.dumps(_report(made, seconds)))
    else:
        _print(made, seconds)
    return 0


def _forecast(options: Options) -> int:
    from spectra.allocation.rankmap import RankMap
    from spectra.commands.forecasts import show
    from spectra.compression.plan import Request
    from spectra.forecasting.compress import compress_forecast
    from spectra.models.source import Source

    source = Source(options.checkpoint)
    rank_map = None if options.map is None else RankMap.load(options.map)
    if rank_map is not None:
        source = source.spanning(rank_map.ranks)
    device = str(device_of(options.device))
    request = Request(source, rank_map, options.compression, not options.skip_hash, device)
    return show(compress_forecast(request), options.out, options.json, device)


def left_lines(left: Mapping[str, str]) -> Iterator[str]:
    """Lines that say which matrices were left whole, one for every reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        yield f"left whole, {reason}: {', '.join(names[:2])}{more}"


def _report(made: "Compressed", seconds: float) -> dict[str, Any]:
    rank_map = made.rank_map
    return {
        "method": made.compression["method"],
        "allocation": rank_map.method,
        "storage": rank_map.storage,
        "err_asked": rank_map.asked["err"],
        "budget_asked": rank_map.asked["budget"],
        "err": rank_map.err,
        "budget": rank_map.budget,
        "threshold": rank_map.threshold,
        "lrc": len(rank_map.lrc),
        "nlrc": len(rank_map.nlrc),
        "factored": sum(m.factored for m in rank_map.modules),
        "left_dense": dict(made.left_dense),
        "block_parameters": rank_map.parameters,
        "parameters": made.parameters,
        "bytes": made.bytes,
        "compression": dict(made.compression),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "out": str(made.path),
    }


def _print(made: "Compressed", seconds: float) -> None:
    rank_map = made.rank_map
    for line in left_lines(made.left_dense):
        print(line, file=sys.stderr)
    if made.reused:
        print(f"reused {made.reused} tensors of an interrupted call")
    dense = sum(m.params_dense for m in rank_map.modules)
    count = sum(m.factored for m in rank_map.modules)
    print(
        f"{count} of {len(rank_map.modules)} matrices factored by {made.compression['method']}, "
        f"stored as {rank_map.storage}, ranks by {rank_map.method}"
    )
    print(
        f"{rank_map.parameters:,} of {dense:,} block parameters ({rank_map.budget:.2%}), "
        f"{made.parameters:,} in all, {made.bytes / 1e9:.3g} GB; {len(rank_map.lrc)} LRC, "
        f"{len(rank_map.nlrc)} N-LRC, ERR {rank_map.err:.2%}"
    )
    peak = peak_memory_bytes() / 1e9
    print(f"wrote {made.path} in {seconds:.1f} s, peak memory {peak:.2f} GB")

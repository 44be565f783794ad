"""Write the singular values of every matrix of one or several checkpoints into a store.

A CHECKPOINT is a Hugging Face folder, a .safetensors, .bin, .ckpt or .gguf file, a folder of
torch.distributed or DeepSpeed, an adapter of peft (scanned as its update), a URL, or a hub name, of
which only the matrices are read, by ranges. NAME@rev1,rev2 and a folder of folders like step-1000
become the snapshots of one store. After an interruption, the same command resumes.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from spectra.commands.options import parse
from spectra.machine.console import Console
from spectra.machine.devices import device_of
from spectra.machine.memory import peak_memory_bytes
from spectra.machine.progress import Shown
from spectra_data.errors import InputError, first_lines

if TYPE_CHECKING:
    from spectra.scanning.scan import Summary


@dataclass(frozen=True)
class Options:
    """Options of `spectra scan`."""

    checkpoint: tyro.conf.Positional[tuple[str, ...]]
    """Checkpoints to scan; several become the snapshots of one store, ordered by the number in
    their names."""
    out: str
    """Store to write, e.g. scan.zarr."""
    approximate: bool = False
    """Compute leading values and spectral density, with error bars, in a fraction of the time."""
    workers: int | None = None
    """Number of processes that decompose; by default the threads of this one do."""
    scheduler: str | None = None
    """Address of a dask.distributed scheduler, e.g. tcp://host:8786, whose workers decompose; they
    must find the checkpoint at the same path."""
    device: str | None = None
    """Device to compute on, cpu or cuda; by default cuda if available."""
    seed: int = 0
    """Seed of the probes of an approximate scan."""
    towers: bool = False
    """Scan the matrices of towers other than the language model's, e.g. for images, too."""
    dry_run: bool = False
    """Print what it will read, need and take, timed on samples; write nothing."""
    json: bool = False
    """Print one JSON object on stdout instead of text."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parse(Options, arguments, command="scan", description=__doc__)
    from spectra.scanning.scan import run_scan
    from spectra.store.destination import require_writable
    from spectra.store.location import local_path

    if options.dry_run:
        return _forecast(options)
    console = Console(stderr=True)
    if (path := local_path(options.out)) is not None:
        require_writable(path, folder=True)
    started = time.perf_counter()
    with Shown(console, "matrices") as shown:
        summary = run_scan(
            options.checkpoint,
            options.out,
            approximate=options.approximate,
            workers=options.workers,
            scheduler=options.scheduler,
            device=options.device,
            seed=options.seed,
            towers=options.towers,
            progress=shown.update,
        )
    seconds = time.perf_counter() - started
    for line in (*first_lines(summary.problems), *summary.not_finite):
        print(f"spectra scan: {line}", file=sys.stderr)
    if options.json:
        print(json.dumps(_report(summary, options, seconds)))
    else:
        _print(summary, options, seconds)
    return 1 if summary.not_finite or summary.problems else 0


def _forecast(options: Options) -> int:
    if options.scheduler is not None:
        raise InputError("a cluster's time is not known here: leave out --scheduler or --dry-run")
    from spectra.commands.forecasts import show
    from spectra.forecasting.scan import scan_forecast
    from spectra.scanning.decomposition import DecompositionOptions
    from spectra.scanning.scan import opened_series

    started = time.perf_counter()
    opened = opened_series(options.checkpoint, options.towers)
    opening = time.perf_counter() - started
    device = str(device_of(options.device))
    wanted = DecompositionOptions(options.approximate, device, options.seed)
    forecast = scan_forecast(opened, wanted, options.workers, opening=opening)
    return show(forecast, options.out, options.json)


def _report(summary: "Summary", options: Options, seconds: float) -> dict[str, Any]:
    return {
        "store": options.out,
        "snapshots": summary.snapshots,
        "matrices": summary.matrices,
        "decomposed": summary.decomposed,
        "approximate": options.approximate,
        "skipped": [{"name": name, "reason": reason} for name, reason in summary.skipped],
        "not_finite": list(summary.not_finite),
        "problems": list(summary.problems),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(children=options.workers is not None),
    }


def _print(summary: "Summary", options: Options, seconds: float) -> None:
    for reason, count in Counter(reason for _, reason in summary.skipped).items():
        names = [name for name, why in summary.skipped if why == reason]
        more = f" and {count - 2} more" if count > 2 else ""
        print(f"left out, {reason}: {', '.join(names[:2])}{more}")
    what = "approximately, with error bars" if options.approximate else "exactly"
    if not summary.decomposed:
        print(f"{options.out} is complete: nothing to do")
        return
    print(
        f"{summary.decomposed} matrices decomposed {what} in {seconds:.1f} s, "
        f"peak memory {peak_memory_bytes(children=options.workers is not None) / 1e9:.2f} GB"
    )
    snapshots = "1 snapshot" if summary.snapshots == 1 else f"{summary.snapshots} snapshots"
    print(f"wrote {options.out} ({snapshots} of {summary.matrices} matrices)")

"""Compressing LLaMA-7B shapes against torch.svd, and a low-rank layer against the dense one.

`compress`: a whole call by WeLore's map at ERR 50 %, on a checkpoint of two layers with LLaMA-7B's
shapes: reading, factors of the LRCs, writing. The reference decomposes every matrix by `torch.svd`
in float32, as WeLore's does; of it only the decompositions are counted, one of each shape timed.
`forward`: batch 8 x 512 in float32, at 0.8 of the parameters, ranks of pivoted layers a multiple
of 16; reference is the dense layer.
"""

import tempfile
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F

from spectra.allocation.allocate import allocate
from spectra.checkpoint.checkpoint import open_checkpoint
from spectra.compression.compress import compress
from spectra.machine.memory import peak_memory
from spectra.scanning.scan import scan
from spectra.storages.factors_layer import LowRankLinear
from spectra.storages.pivoted_layer import PivotedLinear
from tests.benchmarks.timing import seconds_once
from tests.llama_shaped import weight, write_checkpoint

SHAPES = [
    (576, 576), (192, 576), (1536, 576), (576, 1536), (2048, 2048), (8192, 2048), (2048, 8192),
    (4096, 4096),
]  # fmt: skip
KEPT = 0.8


def run() -> list[dict[str, object]]:
    """Measure the call, then the layers."""
    return [_compressing(), *_layers()]


def _compressing() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = f"{folder}/two-layers"
        write_checkpoint(Path(checkpoint), layers=2)
        rank_map = allocate(scan(checkpoint, f"{folder}/scan.zarr"), err=0.5)
        with peak_memory(torch.device("cpu")) as peak:
            ours = seconds_once(
                lambda: compress(checkpoint, rank_map, f"{folder}/out", check_weights=False)
            )
        counts = Counter((m.rows, m.cols) for m in open_checkpoint(checkpoint).matrices)
    theirs = 0.0
    for (rows, cols), count in counts.items():
        matrix = weight(rows, cols, "v", torch.Generator().manual_seed(0)).float()
        theirs += count * seconds_once(lambda x=matrix: torch.svd(x))
    lrc = len(rank_map.lrc)
    return _row(f"compress, {lrc} LRCs of {len(rank_map.modules)} matrices", theirs, ours) | {
        "peak GB": peak[0] / 1e9
    }


def _layers() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for m, n in SHAPES:
        x, dense = torch.randn(8, 512, n), torch.randn(m, n)
        both = m + n
        pivoted = int((both - (both * both - 4 * KEPT * m * n) ** 0.5) / 2) // 16 * 16
        with torch.no_grad():
            theirs = _best(lambda x=x, w=dense: F.linear(x, w))
            for layer, rank in (
                (LowRankLinear, int(KEPT * m * n / both)),
                (PivotedLinear, pivoted),
            ):
                made = layer(n, m, rank)
                for parameter in made.parameters():
                    torch.nn.init.normal_(parameter)
                ours = _best(lambda x=x, f=made: f(x))
                rows.append(_row(f"forward {m} x {n}, {layer.__name__} {rank}", theirs, ours))
    return rows


def _best(call, repeats: int = 15) -> float:
    call()
    return sorted(seconds_once(call) for _ in range(repeats))[2]


def _row(what: str, theirs: float, ours: float) -> dict[str, object]:
    return {
        "what": what,
        "reference s": theirs,
        "ours s": ours,
        "reference/ours": theirs / ours,
        "peak GB": float("nan"),
    }

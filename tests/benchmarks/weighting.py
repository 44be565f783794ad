"""Weighted truncation of one matrix by Fisher: seconds, over its short side and over both sides.

`both sides` has an eigendecomposition of either covariance in float64 and a decomposition of the
whole weighted matrix, as a direct transcription would; only shapes whose sides it can decompose in
minutes have one. `spectrum` is what the short side needs to know all singular values, root
included; `factors` what it takes to cut the product of half the ranks; `scan` is the plain singular
values of the same weight, as `spectra scan` computes them: one of two at once. The last row adds up
the seven matrices of a LLaMA-7B block.
"""

import torch

from spectra.calibration.statistics import add_products, whole_of
from spectra.compression.truncation import covariance_root, decompose
from spectra.linalg import singular_values_of_many
from tests.benchmarks.timing import seconds_once

SHAPES = [(576, 576), (576, 1536), (1536, 576), (896, 4864), (4864, 896), (4096, 4096),
          (11008, 4096), (4096, 11008)]  # fmt: skip
LARGEST_WHOLE = 5000
"""Longest side for which both sides are decomposed, too."""
SHRINKAGE = 0.01


def covariance(side: int, seed: int) -> torch.Tensor:
    """Second moments of correlated features, whose eigenvalues fall as a power law."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(side, side, generator=draw) * torch.arange(1, side + 1) ** -0.5
    mix = torch.randn(side, 64, generator=draw)
    return (x @ x.mT + mix @ mix.mT).double()


def both_sides(w: torch.Tensor, c: torch.Tensor, g: torch.Tensor, rank: int) -> torch.Tensor:
    """The best product by two eigendecompositions and one of the whole matrix."""
    roots = []
    for moment in (c, g):
        values, vectors = torch.linalg.eigh(moment)
        roots.append((vectors * values.sqrt(), (vectors / values.sqrt()).mT))
    (s, s_inverse), (left, left_inverse) = roots
    u, d, vh = torch.linalg.svd(left.mT @ w.double() @ s, full_matrices=False)
    return left_inverse.mT @ (u[:, :rank] * d[:rank]) @ (vh[:rank] @ s_inverse)


def run() -> list[dict[str, object]]:
    """Measure every shape."""
    rows = [_row(*shape) for shape in SHAPES]
    block = dict.fromkeys(rows[0], float("nan")) | {"shape": "LLaMA-7B block"}
    for name in ("spectrum", "factors", "scan"):
        square, tall, wide = (row[name] for row in rows[-3:])
        block[name] = 4 * square + 2 * tall + wide
    return [*rows, _with_ratios(block)]


def _row(rows: int, cols: int) -> dict[str, object]:
    w = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)) * 0.02
    of_outputs, rank = rows < cols, min(rows, cols) // 2
    short, long = (rows, cols) if of_outputs else (cols, rows)
    own, far = covariance(short, 1), covariance(long, 2)
    wide = w if of_outputs else w.mT
    moment = wide.double() @ far @ wide.double().mT  # summed during the passes

    def spectrum() -> None:
        products = torch.zeros_like(moment)
        for part in torch.split(wide.mT, 512):
            add_products(products, part)
        middle = (1 - SHRINKAGE) * moment + SHRINKAGE * float(far.diagonal().mean()) * whole_of(
            products
        )
        found.append(
            decompose(middle, covariance_root(own, shrinkage=SHRINKAGE), of_outputs=of_outputs)
        )

    found = []
    row: dict[str, object] = {"shape": f"{rows} x {cols}", "rank": rank}
    row["spectrum"] = seconds_once(spectrum)
    row["factors"] = seconds_once(lambda: found[0].truncated(w, rank))
    row["scan"] = seconds_once(lambda: singular_values_of_many([w, w], method="mixed")) / 2
    row = _with_ratios(row)
    if max(rows, cols) <= LARGEST_WHOLE:
        c, g = (far, own) if of_outputs else (own, far)
        row["both sides"] = seconds_once(lambda: both_sides(w, c, g, rank))
        row["both/ours"] = row["both sides"] / (row["spectrum"] + row["factors"])
    else:
        row["both sides"] = row["both/ours"] = float("nan")
    return row


def _with_ratios(row: dict[str, object]) -> dict[str, object]:
    whole = row["spectrum"] + row["factors"]
    return row | {"spectrum/scan": row["spectrum"] / row["scan"], "all/scan": whole / row["scan"]}

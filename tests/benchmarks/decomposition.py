"""Singular values of float32 matrices: milliseconds a matrix, ours and the peers' in one process.

`error` is the largest error of ours over the largest value, against float64 LAPACK; `torch error`
that of torch.linalg.svdvals in float32, which is what instrumentation usually calls.
"""

import numpy as np
import torch

from spectra.linalg import singular_values, singular_values_of_many
from tests.benchmarks.timing import median_seconds

SHAPES = [(128, 128), (352, 128), (512, 512), (1376, 512), (768, 768), (2048, 768), (2048, 2048)]
TOGETHER = 8


def run() -> list[dict[str, object]]:
    """Measure every shape; on CUDA where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for shape in SHAPES:
        draw = torch.Generator().manual_seed(0)
        matrices = [torch.randn(shape, generator=draw).to(device) for _ in range(TOGETHER)]
        one = matrices[0]
        count = 2 if shape[0] == 2048 else 5
        exact = torch.linalg.svdvals(one.double())
        ours = median_seconds(lambda one=one: singular_values(one), count)
        many = median_seconds(lambda all_=matrices: singular_values_of_many(all_), count) / TOGETHER
        torch_ = median_seconds(lambda one=one: torch.linalg.svdvals(one), count)
        array = one.cpu().numpy()
        numpy_ = median_seconds(lambda a=array: np.linalg.svd(a, compute_uv=False), count)
        rows.append(
            {
                "shape": f"{shape[0]} x {shape[1]}",
                "ours": ours * 1e3,
                "8 together": many * 1e3,
                "torch": torch_ * 1e3,
                "numpy": numpy_ * 1e3,
                "torch/ours": torch_ / many,
                "numpy/ours": numpy_ / many,
                "error": _error(singular_values(one), exact),
                "torch error": _error(torch.linalg.svdvals(one), exact),
            }
        )
    return rows


def _error(values: torch.Tensor, exact: torch.Tensor) -> float:
    return ((values.double() - exact).abs().max() / exact[0]).item()

"""Matrices of many kinds: what spectra of weights can look like, and what they hardly ever do."""

from collections.abc import Iterator

import numpy as np


def with_values(values, rows, cols, draw):
    """A matrix (rows, cols) of given singular values, descending; its vectors are random."""
    count = min(rows, cols)
    left = np.linalg.qr(draw.standard_normal((rows, count)))[0]
    right = np.linalg.qr(draw.standard_normal((cols, count)))[0]
    return left * np.sort(np.resize(values, count))[::-1] @ right.T


def known_spectra(count, draw):
    """Singular values by kind: (count,) each."""
    order = np.arange(count)
    first = lambda number: (order < number).astype(float)  # noqa: E731
    yield from ((f"power {p}", (order + 1.0) ** -p) for p in (0.25, 0.5, 1, 2, 4))
    yield from ((f"geometric 1e-{d}", np.logspace(0, -d, count)) for d in (1, 3, 6, 12))
    yield from ((f"rank {r}", first(r)) for r in (1, 2, 10, 20, 40, count // 4, count // 2))
    yield "equal", np.ones(count)
    for size in (2, 4, 12, 20, 40):
        yield f"groups of {size}", np.linspace(1, 0.1, -(-count // size)).repeat(size)[:count]
    yield "step to nothing", np.maximum(first(count // 2), 1e-3)
    yield "step", np.maximum(first(count // 3), 0.5)
    yield "four steps", np.repeat([1, 0.7, 0.4, 0.1], -(-count // 4))[:count]
    yield "one large", np.maximum(1e4 * first(1), 1)
    yield "thirty large", np.concatenate([np.linspace(30, 10, 30), np.ones(count - 30)])
    yield "one small", np.maximum(first(count - 1), 1e-6)
    yield "linear", np.linspace(1, 0, count)
    yield "nearly equal", np.linspace(1, 0.9, count)
    yield "two bands", np.append(np.linspace(1, 0.9, count // 2), np.linspace(0.2, 0.1, count // 2))
    yield "uniform", draw.random(count)
    yield "lognormal", np.exp(1.5 * draw.standard_normal(count))
    digits = (draw.integers(0, 1024, count)[:, None] >> np.arange(10)) & 1
    yield "fractal", 0.01 + digits @ (2 * 3.0 ** -np.arange(1, 11))


def families(rows, cols, draw: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Matrices (rows, cols) in float64, by kind."""
    count = min(rows, cols)
    normal = lambda *shape: draw.standard_normal(shape or (rows, cols))  # noqa: E731
    for kind, values in known_spectra(count, draw):
        yield kind, with_values(values, rows, cols, draw)
    low = with_values((np.arange(count) < count // 8).astype(float), rows, cols, draw)
    yield "low rank and little noise", low + 1e-3 * normal() / count**0.5
    yield "low rank and noise", low + 0.2 * normal() / count**0.5
    yield "product of rank 50", normal(rows, 50) @ normal(50, cols)
    yield "normal", normal()
    yield "mean", draw.random((rows, cols))
    yield "ternary", draw.integers(-1, 2, (rows, cols)).astype(float)
    yield "integers", draw.integers(-127, 128, (rows, cols)).astype(float)
    yield "sparse", np.where(draw.random((rows, cols)) < 0.01, normal(), 0)
    yield "heavy", draw.standard_t(1.5, (rows, cols))
    yield "half heavy", draw.standard_t(3, (rows, cols))
    yield "graded", normal() * np.logspace(0, -6, cols)
    yield "little graded", normal() * np.logspace(0, -2, cols)
    yield "most rows zero", normal() * (draw.random((rows, 1)) < 0.1)
    yield "some rows zero", normal() * (draw.random((rows, 1)) < 0.7)
    yield "columns large", normal() * np.where(draw.random(cols) < 0.5, 1e3, 1)
    yield "columns outlying", normal() * np.where(draw.random(cols) < 0.02, 30, 1)
    yield "row outlying", normal() * np.where(np.arange(rows) == 0, 1e4, 1)[:, None]
    yield "one entry", np.outer(np.arange(rows) == 0, np.arange(cols) == 0).astype(float)
    yield "identical columns", normal(rows, 1) * np.ones(cols)
    yield "ones", np.ones((rows, cols))
    yield "diagonal", np.eye(rows, cols) * np.linspace(1, 2, cols)
    yield "permutation", np.eye(rows, cols)[draw.permutation(rows)]
    yield "Hilbert", 1 / (np.arange(rows)[:, None] + np.arange(cols) + 1.0)
    yield "Toeplitz", np.exp(-np.abs(np.arange(rows)[:, None] - np.arange(cols)) / 10.0)
    yield (
        "blocks",
        np.kron(np.eye(4), np.ones((rows // 4 + 1, cols // 4 + 1)))[:rows, :cols] + 0.01 * normal(),
    )

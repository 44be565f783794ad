"""Which entries of a weight become zero, and how SparseGPT changes the others.

Unstructured, or n of every m neighbours in a row. The number of zeros is exact: the floor of the
requested share of a matrix (magnitude), of each row (Wanda), of each block of columns (SparseGPT).
"""

import re
from dataclasses import dataclass

import torch

from spectra.linalg import scaled, shifted
from spectra_data.errors import InputError

BLOCK = 128
"""Number of columns in which SparseGPT chooses zeros together."""
DAMPING = 0.01
"""Fraction of the Hessian's mean diagonal that is added to the diagonal."""


@dataclass(frozen=True)
class Pattern:
    """Number of zeros, and their allowed positions.

    Raises
    ------
    InputError
        When the sparsity is not a share of entries.
    """

    sparsity: float
    """Share of zeros."""
    zeros: int = 0
    """Number of zeros among every `of` neighbours in a row; 0 if unstructured."""
    of: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise InputError(f"a sparsity is at least 0 and below 1, not {self.sparsity:g}")

    @property
    def structured(self) -> bool:
        """Whether zeros are counted among neighbours."""
        return self.of > 0


def parse_pattern(sparsity: float | None, pattern: str | None) -> Pattern:
    """A pattern from a share of zeros, or from ``n:m``: n entries kept of every m.

    Raises
    ------
    InputError
        When neither is given, or the two contradict each other.
    """
    if pattern is None:
        if sparsity is None:
            raise InputError("name a sparsity, e.g. 0.5, or a pattern, e.g. 2:4")
        return Pattern(sparsity)
    match = re.fullmatch(r"(\d+):(\d+)", pattern)
    kept, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < kept < of:
        raise InputError(f"a pattern is kept:neighbours, e.g. 2:4, not {pattern}")
    share = 1 - kept / of
    if sparsity is not None and abs(sparsity - share) > 1e-9:
        raise InputError(f"the pattern {pattern} means a sparsity of {share:g}, not {sparsity:g}")
    return Pattern(share, of - kept, of)


def least(scores: torch.Tensor, pattern: Pattern, *, by_row: bool) -> torch.Tensor:
    """The entries with the least scores: True where an entry becomes zero, (rows, cols).

    Parameters
    ----------
    scores
        Scores, (rows, cols).
    pattern
        Number of zeros.
    by_row
        Whether to choose within each row or in the whole matrix; a structured pattern chooses among
        neighbours in both cases.

    Raises
    ------
    InputError
        When the columns cannot be split into groups of neighbours.
    """
    rows, cols = scores.shape
    if pattern.structured:
        if cols % pattern.of:
            raise InputError(f"{cols} columns cannot be split into groups of {pattern.of}")
        groups = scores.reshape(rows, cols // pattern.of, pattern.of)
        return _lowest(groups, pattern.zeros).reshape(rows, cols)
    together = scores if by_row else scores.reshape(1, -1)
    # 100 x 0.29 is 28.999999999999996
    count = int(together.shape[1] * pattern.sparsity + 1e-9)
    return _lowest(together, count).reshape(rows, cols)


def magnitude(weight: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """The weight without its smallest entries: (rows, cols)."""
    return weight.masked_fill(least(scaled(weight)[0].abs(), pattern, by_row=False), 0)


def wanda(weight: torch.Tensor, squares: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    r"""The weight without each row's entries of least :math:`|W_{ij}|\,\|x_j\|_2`.

    Source: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models".

    Parameters
    ----------
    weight
        (rows, cols).
    squares
        Mean or sum of x² over tokens, (cols,).
    pattern
        Number of zeros.
    """
    norms = squares.double().sqrt()
    norms = scaled(norms)[0].to(weight.device)
    return weight.masked_fill(least(scaled(weight)[0].abs() * norms, pattern, by_row=True), 0)


def sparsegpt(
    weight: torch.Tensor,
    second: torch.Tensor,
    pattern: Pattern,
    *,
    block: int = BLOCK,
    damping: float = DAMPING,
) -> torch.Tensor:
    r"""The weight with zeros, where entries to the right of each zero compensate for it.

    With :math:`H = 2E[xx^T]` and U the upper Cholesky factor of its inverse, an entry costs
    :math:`w^2/U_{jj}^2`; the columns to the right compensate for its removal as far as possible.
    Features that are never active cost nothing. Source: Frantar and Alistarh 2023, "SparseGPT".

    Parameters
    ----------
    weight
        (rows, cols).
    second
        Mean of x xᵀ over tokens, (cols, cols).
    pattern
        Number of zeros.
    block
        Number of columns in which zeros are chosen together.
    damping
        Fraction of the mean diagonal that is added to the diagonal.

    Raises
    ------
    InputError
        When the Hessian is not finite or not positive definite.
    """
    w, exponent = scaled(weight.detach())
    cols = w.shape[1]
    if pattern.structured and block % pattern.of:
        block = block // pattern.of * pattern.of or pattern.of
    h = 2 * second.double().to(w.device)
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1.0
    w[:, dead] = 0
    h.diagonal().add_(damping * h.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(h)
    if failed or not torch.isfinite(factor).all():
        raise InputError("its inputs' second moments are not finite or not positive definite")
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True).float()
    for first in range(0, cols, block):
        last = min(first + block, cols)
        part = w[:, first:last].clone()
        u = upper[first:last, first:last]
        errors = torch.zeros_like(part)
        zero = torch.zeros_like(part, dtype=torch.bool)
        if not pattern.structured:
            zero = least(part.square() / u.diagonal().square(), pattern, by_row=False)
        for j in range(last - first):
            if pattern.structured and j % pattern.of == 0:
                group = slice(j, j + pattern.of)
                scores = part[:, group].square() / u.diagonal()[group].square()
                zero[:, group] = least(scores, pattern, by_row=True)
            column = part[:, j]
            kept = column.masked_fill(zero[:, j], 0)
            error = (column - kept) / u[j, j]
            part[:, j] = kept
            part[:, j + 1 :] -= error[:, None] * u[j, j + 1 :]
            errors[:, j] = error
        w[:, first:last] = part
        w[:, last:] -= errors @ upper[first:last, last:]
    return shifted(w.to(torch.promote_types(w.dtype, weight.dtype)), exponent).to(weight.dtype)


def _lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True at the `count` lowest entries along the last dimension."""
    found = torch.zeros_like(scores, dtype=torch.bool)
    if count:
        found.scatter_(-1, scores.topk(count, dim=-1, largest=False).indices, True)
    return found

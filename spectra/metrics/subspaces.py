r"""How far the leading directions of a matrix have turned.

A subspace is an orthonormal basis in the columns of an array (..., side, k). Singular vectors have
no sign, and those of equal singular values no order: everything here depends on the subspaces
alone, never on the columns of a basis. A column of NaN is a direction that the matrix does not
have.
"""

from typing import Any

import numpy as np

from spectra.metrics.spectrum import Floats, as_floats


def subspace_overlap(one: Any, other: Any) -> Floats:
    r"""Mean squared cosine of the principal angles, :math:`\|U_s^TU_t\|_F^2/k`, in [0, 1].

    Compare it with `chance_overlap`, the overlap of unrelated subspaces (Gur-Ari, Roberts and Dyer
    2018).

    Parameters
    ----------
    one, other
        Bases (..., side, k) with leading axes that broadcast against each other. The smaller k
        counts, without columns of NaN.
    """
    u, v = as_floats(one), as_floats(other)
    k = np.minimum(directions(u), directions(v))
    inner = np.nan_to_num(u).swapaxes(-2, -1) @ np.nan_to_num(v)
    with np.errstate(invalid="ignore", divide="ignore"):
        overlap = np.square(inner).sum(axis=(-2, -1)) / k
    return np.where(k > 0, np.minimum(overlap, 1.0), np.nan)


def chance_overlap(k: Any, side: Any) -> Floats:
    r"""Expected overlap of a subspace with an independent uniform one: k/d for side d.

    For subspaces of different sizes, k is the larger.
    """
    return as_floats(k) / as_floats(side)


def principal_angles(one: Any, other: Any) -> Floats:
    r"""Angles between two subspaces in radians, ascending, (..., k), in [0, π/2].

    From cosines and sines of the same decomposition, so that small angles keep their digits
    (Björck and Golub 1973; Knyazev and Argentati 2002). NaN for missing directions.

    Parameters
    ----------
    one, other
        Bases (..., side, k) with leading axes that broadcast against each other. The smaller k
        counts, without columns of NaN.
    """
    u, v = np.nan_to_num(as_floats(one)), np.nan_to_num(as_floats(other))
    k, of_other = directions(as_floats(one)), directions(as_floats(other))
    k = np.minimum(k, of_other)
    inner = u.swapaxes(-2, -1) @ v
    cosines = np.linalg.svd(inner, compute_uv=False)
    count = cosines.shape[-1]
    # ascending, without the zeros of directions that `other` does not have
    sines = np.linalg.svd(v - u @ inner, compute_uv=False)
    last = np.broadcast_to(of_other[..., None], (*sines.shape[:-1], 1)) - 1
    positions = np.clip(last - np.arange(count), 0, sines.shape[-1] - 1)
    sines = np.take_along_axis(sines, positions, axis=-1)
    angles = np.where(
        np.square(cosines) >= 0.5,
        np.arcsin(np.clip(sines, 0.0, 1.0)),
        np.arccos(np.clip(cosines, 0.0, 1.0)),
    )
    return np.where(np.arange(angles.shape[-1]) < k[..., None], angles, np.nan)


def kept_energy(basis: Any, matrix: Any) -> Floats:
    r"""Share of a matrix's energy in a subspace, :math:`\|P^TG\|_F^2/\|G\|_F^2`, in [0, 1].

    With the leading left singular vectors P of an earlier gradient, it says how fresh a projector
    such as GaLore's still is: at best the energy of G's own k leading values, by chance k/d.

    Parameters
    ----------
    basis
        (..., rows, k).
    matrix
        (..., rows, cols); its leading axes broadcast against those of `basis`.
    """
    p, g = as_floats(basis), as_floats(matrix)
    with np.errstate(invalid="ignore", divide="ignore"):
        g = g / np.abs(g).max(axis=(-2, -1), keepdims=True)
    projected = np.nan_to_num(p).swapaxes(-2, -1) @ g
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.square(projected).sum(axis=(-2, -1)) / np.square(g).sum(axis=(-2, -1))
    return np.where(directions(p) > 0, np.minimum(share, 1.0), np.nan)


def directions(basis: Any) -> Any:
    """Number of columns of a basis (..., side, k) that are not NaN."""
    return (~np.isnan(as_floats(basis)).all(axis=-2)).sum(axis=-1)

"""How far the leading directions of the gradients turn, from recorded singular vectors."""

from functools import partial
from typing import Any, Literal, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from spectra.analysis.gradients import (
    MEMORY,
    Buffers,
    in_order,
    labelled,
    matrix_blocks,
    raw_gradients,
    read_block,
)
from spectra.analysis.stored import unread
from spectra.machine.cores import one_blas_thread
from spectra.metrics import subspaces
from spectra.store.reader import from_bfloat16_bits, takes_store
from spectra_data.errors import InputError

Side = Literal["left", "right"]
_DIMS = {"left": ("row", "rows"), "right": ("col", "cols")}


@takes_store
def subspace_overlap(run: xr.DataTree, side: Side = "left") -> xr.Dataset:
    r"""Overlap of the gradients' leading subspaces at all pairs of snapshots, and by chance.

    Parameters
    ----------
    run
        A store, opened or by its address, with ``subspaces``.
    side
        ``left`` singular vectors (of the rows) or ``right`` ones (of the columns).

    Returns
    -------
    `overlap` (matrix, step, step\_), :math:`\|U_s^TU_t\|_F^2/k` in [0, 1], and `chance` (matrix),
    k/d, the overlap of unrelated subspaces. k counts the directions that a gradient has: fewer than
    were recorded if its rank is lower, and for `chance` the most of any snapshot.

    Raises
    ------
    InputError
        When no subspaces were recorded.
    """
    bases = _bases(run, side)
    overlap = _pairwise(bases, subspaces.subspace_overlap, [])
    overlap.attrs = {"long_name": "overlap of leading subspaces", "units": "1"}
    return xr.Dataset({"overlap": overlap, "chance": _chance(bases, side)})


@takes_store
def principal_angles(run: xr.DataTree, side: Side = "left") -> xr.DataArray:
    r"""Principal angles between the gradients' leading subspaces at all pairs of snapshots.

    Parameters
    ----------
    run, side
        As for `subspace_overlap`.

    Returns
    -------
    (matrix, step, step\_, component) in radians, ascending: 0 is a direction that both share.

    Raises
    ------
    InputError
        When no subspaces were recorded.
    """
    angles = _pairwise(_bases(run, side), subspaces.principal_angles, ["component"])
    angles.attrs = {"long_name": "principal angles of leading subspaces", "units": "rad"}
    return angles


@takes_store
def projector_staleness(run: xr.DataTree, *, memory: int = MEMORY) -> xr.Dataset:
    r"""Share of a later gradient that an earlier gradient's leading subspace still holds.

    A projector that is renewed only now and then keeps this share of the gradient: with the
    recorded left singular vectors :math:`P_s` of step s, :math:`\|P_s^TG_t\|_F^2/\|G_t\|_F^2`.
    (GaLore projects this way if rows ≤ cols, and on the right otherwise.)

    Parameters
    ----------
    run
        A store, opened or by its address, with ``subspaces`` and raw ``gradients``.
    memory
        Bytes that the raw gradients in work may use, on one machine.

    Returns
    -------
    `kept` (matrix, step, step\_): the share of the gradient at step\_ in the subspace of step, in
    [0, 1]; on the diagonal the best possible. `chance` (matrix): k/rows.

    Raises
    ------
    InputError
        When subspaces or raw gradients were not recorded.
    """
    bases, buffers = _bases(run, "left"), Buffers()
    parts = []
    for gradients in raw_gradients(run):
        own = bases.sel(matrix=gradients["matrix"].to_numpy())
        own = own.isel(row=slice(gradients.sizes["row"]))
        of_block = delayed(partial(_kept_shares, gradients, own, buffers), pure=False)
        steps = gradients.sizes["step"]
        shares = []
        for matrices, (rows,) in matrix_blocks(gradients, memory, whole=True):
            shape = (matrices.stop - matrices.start, steps, steps)
            shares.append(da.from_delayed(of_block(matrices, rows), shape, dtype=np.float64))
        parts.append(labelled(da.concatenate(shares), gradients))
    together = in_order(parts, run)
    together.attrs = {"long_name": "share of a later gradient in an earlier subspace", "units": "1"}
    return xr.Dataset({"kept": together, "chance": _chance(bases, "left")})


def _kept_shares(
    gradients: xr.DataArray, bases: xr.DataArray, buffers: Buffers, matrices: slice, rows: slice
) -> npt.NDArray[np.float64]:
    """Shares (matrix, step, step_) of the gradients at step_ in the bases of step."""
    projectors = bases[:, matrices].to_numpy()
    with read_block(gradients, matrices, rows, buffers) as block, one_blas_thread:
        shares = np.empty((len(block), len(projectors), len(projectors)))
        for matrix, of_one in enumerate(block):
            for step, gradient in enumerate(of_one):
                values = from_bfloat16_bits(gradient) if gradient.dtype == np.uint16 else gradient
                shares[matrix, :, step] = subspaces.kept_energy(projectors[:, matrix], values[None])
    return shares


def _bases(run: xr.DataTree, side: Side) -> xr.DataArray:
    if side not in _DIMS:
        raise InputError(f"`side` must be left or right, not {side!r}")
    if "subspaces" not in run.children:
        raise InputError(
            "this store holds no subspaces: record with `subspaces=8`, say (--record-subspaces 8)"
        )
    return unread(run, f"subspaces/gradient_{side}")


def _chance(bases: xr.DataArray, side: Side) -> xr.DataArray:
    """k/d for each matrix; k is the most directions of any snapshot's gradient."""
    dim, sides = _DIMS[side]
    counts = xr.apply_ufunc(
        subspaces.directions,
        _blocks(bases),
        input_core_dims=[[dim, "component"]],
        dask="parallelized",
        output_dtypes=[np.int64],
    )
    chance = subspaces.chance_overlap(counts.max("step").to_numpy(), bases[sides])
    described = {"long_name": "the same of unrelated subspaces", "units": "1"}
    coords = {name: c for name, c in bases.coords.items() if c.dims == ("matrix",)}
    return xr.DataArray(chance, dims="matrix", coords=coords, attrs=described)


def _blocks(bases: xr.DataArray) -> xr.DataArray:
    (dim,) = {"row", "col"} & set(bases.dims)
    return bases.chunk({"step": -1, "matrix": 1, dim: -1, "component": -1})


def _pairwise(bases: xr.DataArray, function: Any, more: list[str]) -> xr.DataArray:
    """Apply a function of two bases to all pairs of snapshots, matrix by matrix, lazily."""
    (dim,) = {"row", "col"} & set(bases.dims)
    sizes = {"step_": bases.sizes["step"]}

    def of_all_pairs(block: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        # (matrix, step, side, component); one step at a time, so that memory grows with the steps
        rows = [function(block[:, i : i + 1], block) for i in range(block.shape[1])]
        return np.stack(rows, axis=1)

    result = xr.apply_ufunc(
        of_all_pairs,
        _blocks(bases),
        input_core_dims=[["step", dim, "component"]],
        output_core_dims=[["step", "step_", *more]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": sizes, "allow_rechunk": False},
    )
    return cast(xr.DataArray, result.assign_coords(step_=bases["step"].to_numpy()))

"""Singular values and leading singular vectors: exact, on any device, from any floating dtype."""

import contextlib
from collections.abc import Sequence
from typing import Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh

from spectra.gram import eigenvalues, gram, rounded_gram
from spectra.machine.cores import available_cores, map_matrices, one_blas_thread
from spectra_data.errors import InputError

Array = TypeVar("Array", torch.Tensor, npt.NDArray[np.floating])
Method = Literal["auto", "gram", "mixed", "svd"]
SMALL_SIDE = 1024
MIXED_FLOOR = 1e-2
MIXED_ERROR = 5e-5
"""Largest estimated relative error that ``mixed`` accepts in singular values above `MIXED_FLOOR`
times the first; half of the 1e-4 that it promises."""
SPANNING = 1e-7
"""Share of the first singular value below which singular vectors are rounding."""
_NARROW = (torch.float32, torch.bfloat16, torch.float16)


def singular_values(matrix: Array, *, method: Method = "auto") -> Array:
    r"""All singular values of a matrix, descending, in float64.

    Parameters
    ----------
    matrix
        (rows, cols), or (..., rows, cols) for a stack; a torch tensor on any device or a numpy
        array, of any floating dtype (bfloat16 included).
    method
        ``gram``: square roots of the eigenvalues of :math:`XX^T` or :math:`X^TX`, whichever is
        smaller, formed in float64 after scaling the largest entry to 1. ``svd``: LAPACK's or
        cuSOLVER's decomposition in float64. ``auto``: ``svd`` for float64 input, else ``gram``,
        which on CPU, for sides from 512 up, takes about half the time of torch's float32 SVD and a
        third of numpy's, and is at least as accurate as either down to 1e-8 of the largest value.
        ``mixed``: ``gram``, but for sides from 1024 up on the CPU the products are formed in
        float32 and summed in float64, unless the rounding measured on the way could cause a
        relative error of 5e-5 in a singular value above 1 % of the largest. This takes half the
        time of float64; values below 1 % err by more.

    Returns
    -------
    (..., min(rows, cols)), same kind as `matrix`, on its device if that is the CPU or CUDA; zeros
    for a zero matrix, NaN throughout for a matrix that contains a NaN or an infinity.

    Notes
    -----
    Error, with σ₁ the largest value and u = 2⁻⁵³: ``svd`` errs by at most about n·u·σ₁. ``gram``
    errs in σᵢ² by about n·u·σ₁², so in σᵢ by n·u·σ₁²/σᵢ, and never by more than √(n·u)·σ₁; the
    tests hold it to 1e-7·σ₁ everywhere and to 1e-9 relative for σᵢ > 1e-3·σ₁. A float32 matrix is
    itself only known to within 6e-8·‖X‖ (Golub and Van Loan, Matrix Computations, section 8.6:
    Weyl's inequality for singular values). ``gram``'s values below about 1e-8·σ₁ are rounding, and
    some come out as exactly 0: if such a tail matters, use ``svd``.

    Examples
    --------
    >>> singular_values(np.diag([3.0, 4.0]).astype(np.float32))
    array([4., 3.])
    """
    # on small sides the threads of a BLAS wait for each other longer than they work
    small = matrix.ndim >= 2 and min(matrix.shape[-2:]) < SMALL_SIDE
    with one_blas_thread if small else contextlib.nullcontext():
        return _singular_values(matrix, method)


def _singular_values(matrix: Array, method: Method) -> Array:
    if matrix.ndim < 2 or 0 in matrix.shape:
        raise InputError(f"a matrix has two sides of at least 1, this is {tuple(matrix.shape)}")
    if method == "auto":
        method = "svd" if matrix.dtype in (torch.float64, np.dtype(np.float64)) else "gram"
    if isinstance(matrix, np.ndarray):
        return cast(Array, _on_cpu(matrix.astype(np.float64, copy=False), method))
    tensor = matrix.detach()
    if tensor.device.type == "cuda":
        return _on_cuda(tensor.double(), method)
    tensor = tensor.cpu()  # other devices (mps has no float64) get their values back on the CPU
    if tensor.ndim == 2 and tensor.dtype in _NARROW and _finite(tensor):
        # squares of these cannot overflow or vanish in float64: no scaling, two passes less
        if method == "svd" or min(tensor.shape) < SMALL_SIDE:
            return torch.from_numpy(_decompose(tensor.double().numpy(), method))
        return torch.from_numpy(_of_large(tensor, method))
    return torch.from_numpy(_on_cpu(tensor.double().numpy(), method))


def singular_values_of_many(
    matrices: Sequence[torch.Tensor], *, method: Method = "auto"
) -> list[npt.NDArray[np.float64]]:
    """Singular values of several matrices of any shapes, as numpy arrays in their order.

    On the CPU, one matrix per core: reducing a matrix to tridiagonal form is bound by memory and
    gains little from a second thread, while a second matrix in parallel nearly doubles the speed
    (768 x 768 on two cores: 26 ms per matrix instead of 43 ms). See `singular_values` for the rest.
    """
    if any(matrix.device.type == "cuda" for matrix in matrices):
        on_device = [singular_values(matrix, method=method) for matrix in matrices]
        return [values.cpu().numpy() for values in on_device]
    if available_cores() == 1 or len(matrices) == 1:
        return [singular_values(matrix, method=method).numpy() for matrix in matrices]
    return map_matrices(lambda matrix: _singular_values(matrix, method).numpy(), matrices)


def scaled(matrix: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A finite matrix times 2^-exponent, in float32, and that exponent: its largest entry is in
    [1/2, 1), so that no square overflows, and those that vanish do not matter.
    """
    wide = matrix if matrix.element_size() >= 4 else matrix.float()
    _, exponent = np.frexp(float(wide.abs().max()))
    return shifted(wide, -int(exponent)).float(), int(exponent)


def shifted(matrix: torch.Tensor, exponent: int) -> torch.Tensor:
    """A matrix times 2^exponent; in two steps, since a single power may be out of range."""
    half = exponent // 2
    return matrix * 2.0**half * 2.0 ** (exponent - half)


def leading_subspaces(
    matrix: torch.Tensor, rank: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    r"""Leading left and right singular vectors of a matrix.

    Parameters
    ----------
    matrix
        (rows, cols), of any floating dtype, on any device; decomposed in float64 on the CPU.
    rank
        Number of vectors on each side.

    Returns
    -------
    Left (rows, rank) and right (cols, rank), orthonormal columns in the order of the singular
    values. NaN in the columns whose singular value is below 1e-7 of the first, since those span
    nothing but rounding, and throughout for a matrix that is zero or not finite. The
    arbitrary sign of a pair makes the left vector's largest entry positive; compare subspaces by
    :math:`\|U_s^T U_t\|_F^2`, never vectors by their entries.

    Notes
    -----
    Eigenvectors of the smaller Gram matrix, and the other side as :math:`X^T U / \sigma`, made
    orthonormal by QR. The angle between a computed and the true subspace is about
    1e-16 :math:`\sigma_1^2 / (\sigma_k^2 - \sigma_{k+1}^2)` (Davis and Kahan 1970): where two
    singular values at the cut are equal, the subspace is not defined.

    Raises
    ------
    InputError
        When the matrix has fewer than `rank` singular values.
    """
    rows, cols = matrix.shape
    if not 1 <= rank <= min(rows, cols):
        raise InputError(f"a {rows} x {cols} matrix has no {rank} leading singular vectors")
    left = np.full((rows, rank), np.nan, np.float32)
    right = np.full((cols, rank), np.nan, np.float32)
    x = matrix.detach().cpu().double().numpy()
    largest = np.abs(x).max()
    if not np.isfinite(largest) or largest == 0:
        return left, right
    x = x / largest
    size = min(rows, cols)
    values, vectors = eigh(
        _gram(x), subset_by_index=(size - rank, size - 1), overwrite_a=True, check_finite=False
    )
    singular = np.sqrt(values[::-1].clip(min=0.0))
    count = int((singular > SPANNING * singular[0]).sum())
    one = vectors[:, ::-1][:, :count]
    other, upper = np.linalg.qr((x.T if rows <= cols else x) @ one / singular[:count])
    other = other * np.where(np.diag(upper) < 0, -1.0, 1.0)
    u, v = (one, other) if rows <= cols else (other, one)
    signs = np.sign(np.take_along_axis(u, np.abs(u).argmax(axis=0)[None], axis=0))
    left[:, :count], right[:, :count] = u * signs, v * signs
    return left, right


def _on_cpu(x: npt.NDArray[np.float64], method: Method) -> npt.NDArray[np.float64]:
    finite = np.asarray(np.isfinite(x).all(axis=(-2, -1), keepdims=True))
    # a power of two, so that scaling is exact
    _, exponent = np.frexp(np.abs(np.where(finite, x, 0.0)).max(axis=(-2, -1), keepdims=True))
    scaled = np.ldexp(np.where(finite, x, 0.0), -exponent)
    values = np.ldexp(_decompose(scaled, method), exponent[..., 0])
    return np.where(finite[..., 0], values, np.nan)


def _decompose(x: npt.NDArray[np.float64], method: Method) -> npt.NDArray[np.float64]:
    if method == "svd":
        return cast("npt.NDArray[np.float64]", np.linalg.svd(x, compute_uv=False))
    values = np.sqrt(np.linalg.eigvalsh(_gram(x)).clip(min=0.0))
    return cast("npt.NDArray[np.float64]", values[..., ::-1].copy())


def _of_large(tensor: torch.Tensor, method: Method) -> npt.NDArray[np.float64]:
    exponent = 0
    found = None
    if method == "mixed":
        product, rounding, exponent = rounded_gram(tensor)
        found = eigenvalues(product)
        if rounding.error(found, MIXED_FLOOR) > MIXED_ERROR:
            found, exponent = None, 0
    if found is None:
        found = eigenvalues(gram(tensor))
    values: npt.NDArray[np.float64] = np.ldexp(np.sqrt(found.clip(min=0.0)), exponent)[::-1].copy()
    return values


def _gram(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    transposed = x.swapaxes(-2, -1)
    return x @ transposed if x.shape[-2] <= x.shape[-1] else transposed @ x


def _finite(tensor: torch.Tensor) -> bool:
    least, greatest = torch.aminmax(tensor)  # both are NaN where there is one
    return bool(torch.isfinite(least) & torch.isfinite(greatest))


def _on_cuda(x: torch.Tensor, method: Method) -> torch.Tensor:
    """Detect non-finite matrices on the device; the decomposition waits for the host."""
    finite = x.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    clean = torch.where(finite, x, 0.0)
    _, exponent = torch.frexp(clean.abs().amax(dim=(-2, -1), keepdim=True))
    scaled = torch.ldexp(clean, -exponent)
    if method == "svd":
        values = torch.linalg.svdvals(scaled)
    else:
        wide = x.shape[-2] <= x.shape[-1]
        gram = scaled @ scaled.mT if wide else scaled.mT @ scaled
        values = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt().flip(-1)
    values = torch.ldexp(values, exponent[..., 0])
    return torch.where(finite[..., 0], values, torch.nan)

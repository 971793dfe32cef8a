"""Ranks of matrices: `svdvals`, `tolerance`, `numerical_rank`.

Plain linear algebra on tensors ``(..., m, n)``; nothing here depends on models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from llr.inputs.accept import needed, takes
from llr.inputs.evaluation.surroundings import outside_inference_mode
from llr.inputs.roles import real, whole
from llr.inputs.tensors import as_matrix
from llr.linalg.equilibrate import scaled, scales
from llr.linalg.error_bound import svd_error
from llr.linalg.integers import rank_of_floats
from llr.linalg.spectrum import counted, singular_values, threshold
from llr.ranks.result import RankResult
from llr.ranks.upper_bounds import bounds_of_matrices

# Up to these sizes exact elimination takes a few milliseconds, and is used if a count leaves a rank open.
_SMALL_SIDE, _SMALL_ENTRIES = 16, 1024


@takes(A=as_matrix)
@outside_inference_mode
def svdvals(A: Tensor) -> Tensor:
    """The singular values of a matrix or a batch of matrices, largest first.

    The error is at most 10 eps * sigma_1 times the short side, independently of the long side. (On random
    matrices of short side n up to 100 the largest error was 1.6 sqrt(n) eps * sigma_1.) For this, matrices
    much longer than wide, or wider than long, are first reduced to a triangular factor by QR of short blocks:
    LAPACK's direct method loses a factor of hundreds at 100,000 columns, more than the tolerance for ranks
    allows. For the same reason float32 matrices are computed in float64, too: only the rounding of their
    entries limits their spectrum. Matrices are scaled by a power of two, so entries may be as large or small
    as the dtype holds.

    The native operator is used on the CPU, and on a GPU if the library has kernels for it. It computes many
    small matrices (short side up to 128) at once, on the CPU in the lanes of the vector registers; every bit
    of the result is the same for any number of threads. Otherwise torch computes the values. If both fail for
    a matrix, its values are computed as the eigenvalues of the symmetric [[0, R], [R', 0]] on the CPU, and a
    warning is logged.

    Args:
        A: shape ``(..., m, n)``, float32 or float64, any strides. Empty sides are allowed.

    Returns:
        Shape ``(..., min(m, n))``, dtype and device of `A`, without autograd history.

    Raises:
        TypeError: `A` is not a float32 or float64 tensor.
        ValueError: fewer than two dimensions, NaN or Inf entries, or singular values too large
            for the dtype.
        torch.linalg.LinAlgError: no method converged.

    Source: Golub and Kahan, "Calculating the singular values and pseudo-inverse of a matrix", SIAM J. Numer.
    Anal. 2 (1965); Fernando and Parlett, "Accurate singular values and differential qd algorithms", Numer.
    Math. 67 (1994); Demmel, Grigori, Hoemmen, Langou, "Communication-optimal parallel and sequential QR and
    LU factorizations", SIAM J. Sci. Comput. 34 (2012), for the blocked QR.

    Example:
        >>> import llr, torch
        >>> llr.svdvals(torch.tensor([[3.0, 0.0], [0.0, -4.0]]))
        tensor([4., 3.])
    """
    return singular_values(A, "A")


@takes(spectrum=needed, short_side=whole, rtol=real, atol=real)
def tolerance(
    spectrum: Tensor, short_side: int, *, rtol: float | None = None, atol: float | None = None
) -> Tensor:
    """A tolerance for singular values by size: ``max(atol, rtol * sigma_1)``.

    By default ``rtol = eps(dtype) * short_side`` and ``atol = 0``. It is the short side, not the long
    side, because rounding every entry of A changes the singular values by at most
    ``eps ||A||_F <= eps sqrt(short_side) sigma_1`` for any long side, and the error of `svdvals` has
    the same scale. The usual rule ``eps * max(m, n)`` reaches 1 in float32 at 8.4 million
    columns, which makes the rank of every such matrix 0.

    Args:
        spectrum: singular values, descending, shape ``(..., k)``, float32 or float64.
        short_side: ``min(m, n)`` of the matrix.
        rtol: tolerance relative to sigma_1, finite and >= 0.
        atol: absolute tolerance, finite and >= 0.

    Returns:
        Shape ``(...)``, dtype and device of `spectrum`; an empty spectrum has sigma_1 = 0.

    Raises:
        ValueError: `rtol` or `atol` is negative, NaN or infinite; numbers that are not descending or below 0;
            a `short_side` below 0.

    Example:
        >>> import llr, torch
        >>> llr.tolerance(torch.tensor([8.0, 1.0]), 2, rtol=0.25)
        tensor(2.)
    """
    if spectrum.dim() == 0 or spectrum.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"spectrum is {spectrum.dtype} of shape {tuple(spectrum.shape)}; expected singular values "
            "(..., k) in float32 or float64"
        )
    least = spectrum[..., -1:].amin() if spectrum.numel() else 0.0
    if spectrum.isnan().any() or least < 0 or (spectrum.diff(dim=-1) > 0).any():
        raise ValueError(
            "spectrum is no list of singular values; expected numbers >= 0 in descending order, "
            "as llr.svdvals returns them"
        )
    if type(short_side) is not int or not 0 <= short_side < 2**53:
        raise ValueError(f"short_side is {short_side!r}; expected min(m, n) of the matrix")
    return threshold(spectrum, short_side, rtol=rtol, atol=atol)


@takes(A=as_matrix, rtol=real, atol=real)
@outside_inference_mode
def numerical_rank(
    A: Tensor, *, rtol: float | None = None, atol: float | None = None
) -> RankResult:
    """The numerical rank of a matrix or a batch of matrices, with its evidence.

    The singular values above their error bound, ``2u (10 + 2 min(m, n)) sigma_1`` with the u of A's dtype,
    are counted: A has at least this rank. If the count is less than an upper bound (from the shape, or from
    rows or columns that are zero or equal bit by bit), rows and columns are multiplied by powers of two, so
    that the rank does not depend on units, and the values are counted again. If the rank is still open, exact
    elimination settles it if it gives the same rank, for matrices of a short side up to 16 and of up to 1024
    entries together. With `rtol` or `atol` the values above `tolerance` are counted instead.

    Args:
        A: shape ``(..., m, n)``, float32 or float64. An all-zero or empty matrix has rank 0.
        rtol: count the values above ``rtol * sigma_1`` instead.
        atol: count the values above `atol` instead. With both, the larger threshold is used.

    Returns:
        A `RankResult`; batched over the leading dimensions of `A`. It is about the given numbers. A matrix
        that was rounded before mostly has full rank, which says little; ``clear`` tells whether there is a
        large gap. So if exact elimination gives a larger rank than the count, the result is the count, marked
        as ambiguous, and ``reason`` (for one matrix) gives the other rank.

    Raises:
        TypeError, ValueError, torch.linalg.LinAlgError: as `svdvals` and `tolerance`.

    Example:
        >>> import llr, torch
        >>> llr.numerical_rank(torch.ones(3, 4)).rank
        1
        >>> settled = llr.numerical_rank(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
        >>> settled.rank, settled.exact, settled.upper_from
        (1, True, 'exact elimination')
    """
    return rank_of_matrix(A, "A", rtol=rtol, atol=atol)


def rank_of_matrix(
    A: Tensor, name: str, *, rtol: float | None = None, atol: float | None = None
) -> RankResult:
    """`numerical_rank` of a matrix, called `name` in messages."""
    values = singular_values(A, name)
    m, n = A.shape[-2:]
    found = count(values, m, n, rtol=rtol, atol=atol)
    if rtol is not None or atol is not None or not found.open:
        return found
    matrices = A.detach().reshape(math.prod(A.shape[:-2]), m, n)
    which, some = _left_open(found, matrices)
    for bound, why in bounds_of_matrices(some):
        found = _at_most(found, which, bound, why)
    found, exact = _eliminated(found, matrices)
    if found.open:
        found = with_equilibrated(found, matrices)
    if found.open and exact is not None and found.spectrum.dim() == 1:
        found = replace(
            found,
            reason=f"taken as exact numbers the entries have rank {exact}, by exact elimination",
        )
    return found


def _left_open(found: RankResult, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The indices of the matrices (k, m, n) whose ranks are open, and those matrices."""
    if len(matrices) == 1:
        return torch.zeros(1, dtype=torch.int64, device=matrices.device), matrices
    which = torch.as_tensor(found.ambiguous).reshape(-1).nonzero()[:, 0]
    return which, matrices[which]


def _at_most(found: RankResult, which: Tensor, bound: Tensor, why: str) -> RankResult:
    """The result with an upper bound for each of the matrices at these indices."""
    upper = torch.as_tensor(found.upper)
    bounds = upper.reshape(-1).to(bound.device, copy=True)
    bounds[which] = bounds[which].minimum(bound)
    return found.at_most(bounds.reshape(upper.shape), why)


def _eliminated(found: RankResult, matrices: Tensor) -> tuple[RankResult, int | None]:
    """The result with the exact ranks of small matrices as upper bounds; and the last of these ranks.

    Entries are taken as exact numbers. The exact rank is an upper bound of the count, and settles the rank if
    both are equal. It does not replace the count, since it says little about a matrix that was rounded
    before.
    """
    side = min(matrices.shape[-2:])
    if not found.open or side > _SMALL_SIDE:
        return found, None
    which, some = _left_open(found, matrices)
    if some.numel() > _SMALL_ENTRIES:
        return found, None
    ranks = [rank_of_floats(A) for A in some.tolist()]
    bound = torch.tensor([side if r is None else r for r in ranks], device=matrices.device)
    return _at_most(found, which, bound, "exact elimination"), ranks[-1]


def with_equilibrated(
    found: RankResult,
    matrices: Tensor,
    error: Callable[[Tensor, Tensor], Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> RankResult:
    """The count on the matrices with equilibrated rows and columns, if it is not less.

    Args:
        found: the count without scaling.
        matrices: (B, m, n), with one count for each, or with B = 1 for a single matrix.
        error: a function of the exponents of rows (B, m) and columns (B, n) that returns the errors (B) of
            the scaled matrices; default: the matrices are exact.
        dtype: the precision of the SVD's error; default: that of the matrices, since their entries have been
            rounded to it.
    """
    if not matrices.numel():
        return found
    rows, columns = scales(matrices)
    values = singular_values(scaled(matrices, rows, columns))
    bounds = svd_error(values, min(matrices.shape[-2:]), dtype or found.dtype)
    bounds = bounds if error is None else bounds + error(rows, columns).to(bounds)
    shape = found.spectrum.shape
    again = count(
        values.reshape(shape), found.n_rows, found.n_params, error=bounds.reshape(shape[:-1])
    )
    return found.or_equilibrated(again)


def count(
    spectrum: Tensor,
    n_rows: int,
    n_params: int,
    *,
    error: Tensor | None = None,
    lower_from: str = "error bound",
    rtol: float | None = None,
    atol: float | None = None,
    method: str = "svd",
) -> RankResult:
    """The rank of an (n_rows, n_params) matrix, or a batch, from its singular values (..., k).

    Args:
        spectrum: descending.
        n_rows: rows of the matrix.
        n_params: columns of the matrix.
        error: the errors of the values, (...), float64; default: the error of `svdvals`.
        lower_from: the kind of `error`: "error bound" or "estimate".
        rtol: count the values above a tolerance instead; see `tolerance`.
        atol: likewise.
        method: how the values were found.
    """
    upper = min(n_rows, n_params)
    found = counted(spectrum, upper, error=error, lower_from=lower_from, rtol=rtol, atol=atol)
    rank, lower, tol, gap, ambiguous = (
        found.rank,
        found.lower,
        found.tol,
        found.gap,
        found.ambiguous,
    )
    batched = spectrum.dim() > 1
    return RankResult(
        rank=rank if batched else int(rank),
        spectrum=spectrum,
        tol=tol if batched else float(tol),
        gap=gap if batched else float(gap),
        ambiguous=ambiguous if batched else bool(ambiguous),
        method=method,
        dtype=spectrum.dtype,
        n_rows=n_rows,
        n_params=n_params,
        lower=lower if batched else int(lower),
        lower_from=lower_from,
        upper=torch.full_like(lower, upper) if batched else upper,
        counted_above="error" if rtol is None and atol is None else "tolerance",
    )

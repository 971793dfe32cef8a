"""Singular values, and the number of them above their error.

Plain linear algebra on tensors ``(..., m, n)``; nothing here depends on models.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llr.linalg.error_bound import svd_error
from llr.operators import _ops
from llr.operators.finite import check_finite

log = logging.getLogger("llr")

_LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined] # public, but not marked so

# LAPACK's factorisations lose digits with the length of the matrix: on exact low-rank matrices with 3 to
# 5 short-side rows, up to 2 eps at length 1024, 40 eps at 16,384 and 240 eps at 100,000 were measured in
# float64 (and 600 in float32), where the tolerance is a few eps. At 256 it is about one eps. A longer
# short side has a larger tolerance, and longer blocks are faster.
_BLOCK_ROWS = 256
_BLOCKS_AT_ONCE = 64


# From this ratio on, a count does not depend on the exact threshold.
CLEAR_GAP = 1e3

PROVED = ("error bound", "certificate")


def singular_values(A: Tensor, name: str = "the matrix") -> Tensor:
    """`svdvals` of a real matrix or a batch of them; error messages call it `name`."""
    if A.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} is {A.dtype}; expected float32 or float64 ({_converted(A, name)})")
    A = A.detach()
    m, n = A.shape[-2:]
    if A.numel() == 0:
        return A.new_zeros((*A.shape[:-2], min(m, n)))
    values = _ops.svdvals(A) if _ops.has_kernel(A) else _by_torch(A, name)
    failed = values.isnan().any(-1)
    if bool(failed.any()):  # no convergence, or a matrix that is not finite
        check_finite(A, name, ("row", "column"))
        values[failed] = _as_eigenvalues(A[failed].reshape(-1, m, n)).to(values)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"the largest singular value of {name} is too large for {A.dtype} (entries up to "
            f"{A.abs().max().item():.3g}); divide {name} by a constant"
        )
    return values


def _converted(A: Tensor, name: str) -> str:
    """The expression that converts a matrix of another real dtype to float64, for a message."""
    whole = not A.is_floating_point() and A.dtype != torch.bool
    return f"{name}.double()" + (", exact for integers up to 2^53" if whole else "")


def _by_torch(A: Tensor, name: str) -> Tensor:
    """Singular values by torch; NaN for matrices for which torch fails."""
    check_finite(A, name, ("row", "column"))
    tall, power = _scaled(A)
    shortened = shorten(tall)
    try:
        values = torch.linalg.svdvals(shortened)
    except _LinAlgError:
        values = shortened.new_full((*A.shape[:-2], min(A.shape[-2:])), math.nan)
    return (values * power[..., None]).to(A.dtype)


def _as_eigenvalues(A: Tensor) -> Tensor:
    """Singular values by another algorithm, for matrices (k, m, n) for which the SVD failed."""
    log.warning(
        "the SVD of %s failed; computing its singular values as eigenvalues of a symmetric matrix on the "
        "CPU in float64",
        " x ".join(map(str, A.shape)),
    )
    tall, power = _scaled(A)
    R = torch.linalg.qr(shorten(tall).cpu(), mode="r").R
    k = R.shape[-1]
    symmetric = R.new_zeros((*R.shape[:-2], 2 * k, 2 * k))
    symmetric[..., :k, k:] = R
    symmetric[..., k:, :k] = R.mT
    values = torch.linalg.eigvalsh(symmetric)[..., k:].flip(-1).clamp(min=0)
    if bool(values.isnan().any()):
        raise _LinAlgError(f"no method found the singular values of a {tuple(A.shape)} matrix")
    return values.to(A.device) * power[..., None]


def _scaled(A: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices as tall ones with moderate entries, and the powers of two that they were divided by."""
    tall = A.mT if A.shape[-2] < A.shape[-1] else A
    power = _power_of_two(tall)
    return (tall / power[..., None, None] if bool((power != 1).any()) else tall), power


def _power_of_two(A: Tensor) -> Tensor:
    """Per matrix 1, or the power of two that brings extreme entries near 1."""
    peak = torch.maximum(A.amax((-2, -1)), -A.amin((-2, -1)))
    if A.dtype == torch.float32:
        return torch.ones_like(peak)  # any float32 is moderate for the float64 arithmetic
    info = torch.finfo(A.dtype)
    # Squares and products of a few entries stay in range here, so no scaling is needed.
    moderate = (peak > info.tiny**0.25) & (peak < info.max**0.25)
    mantissa = torch.frexp(peak).mantissa
    return torch.where(moderate | (peak == 0), torch.ones_like(peak), peak / mantissa)


def shorten(tall: Tensor) -> Tensor:
    """A float64 matrix of at most two blocks of rows that has the singular values of `tall`, (..., m, n)."""
    block = max(_BLOCK_ROWS, 16 * tall.shape[-1])
    while tall.shape[-2] > 2 * block:
        shorter = []
        for rows in tall.split(_BLOCKS_AT_ONCE * block, dim=-2):
            rows = rows.double()
            whole = rows.shape[-2] // block * block
            blocks = rows[..., :whole, :].unflatten(-2, (-1, block))
            shorter.append(torch.linalg.qr(blocks, mode="r").R.flatten(-3, -2))
            shorter.append(rows[..., whole:, :])
        tall = torch.cat(shorter, dim=-2)
    return tall.double()


def threshold(
    spectrum: Tensor, short_side: int, *, rtol: float | None = None, atol: float | None = None
) -> Tensor:
    """The tolerance; see :func:`llr.tolerance`."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    if rtol is None:
        rtol = torch.finfo(spectrum.dtype).eps * short_side
    largest = spectrum[..., 0] if spectrum.shape[-1] else spectrum.new_zeros(spectrum.shape[:-1])
    return (rtol * largest).clamp(min=atol or 0.0)


def is_open(lower: Tensor, upper: int | Tensor, lower_from: str) -> Tensor:
    """Whether bounds leave a rank open: they differ, or the lower one is estimated (and not 0)."""
    return (lower != upper) | (lower_from not in PROVED and upper > 0)


@dataclass(frozen=True)
class Counted:
    """The number of singular values above their error, or above a tolerance, and the gap there."""

    rank: Tensor
    """(...), as all of these."""
    lower: Tensor
    """How many are above their error."""
    tol: Tensor
    """The threshold of the count."""
    gap: Tensor
    """The smallest counted value divided by the largest other one, or by the error if that is larger."""
    ambiguous: Tensor


def counted(
    spectrum: Tensor,
    upper: int,
    *,
    error: Tensor | None = None,
    lower_from: str = "error bound",
    rtol: float | None = None,
    atol: float | None = None,
) -> Counted:
    """Count singular values (..., k); as :func:`llr.ranks.matrices.count`, `upper` the short side."""
    if error is None:
        error = svd_error(spectrum, upper, spectrum.dtype)
    # Strictly above, or an all-zero matrix (error 0) would have full rank. Values of another dtype have been
    # rounded.
    exact = spectrum.double()
    rounded = 1.0 if spectrum.dtype == torch.float64 else 1.0 + 2.0**-22
    lower = (exact > rounded * error[..., None]).sum(-1)
    if rtol is None and atol is None:
        rank, tol = lower, error
        # The error replaces values below it, and the missing neighbours at either end.
        floor = exact.clamp(min=0.0).maximum(error[..., None])
        ambiguous = is_open(lower, upper, lower_from)
    else:
        tol = threshold(spectrum, upper, rtol=rtol, atol=atol).double()
        rank, floor = (exact > tol[..., None]).sum(-1), exact
        ambiguous = ((exact - tol[..., None]).abs() < error[..., None]).any(-1)
    ends = tol[..., None]
    extended = torch.cat((ends, floor, ends), dim=-1)
    above = extended.gather(-1, rank[..., None])[..., 0]
    below = extended.gather(-1, rank[..., None] + 1)[..., 0]
    gap = torch.where(below > 0, above / below, math.inf).nan_to_num(nan=1.0, posinf=math.inf)
    if spectrum.shape[-1] == 0:
        gap = torch.full_like(gap, math.inf)
    if rtol is not None or atol is not None:
        ambiguous = ambiguous | (gap < CLEAR_GAP)
    return Counted(rank, lower, tol, gap, ambiguous)

"""Singular values, the tolerance that turns them into a rank, and the rank with its evidence.

Plain linear algebra on tensors ``(..., m, n)``; nothing here knows about models.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RankResult", "check_finite", "numerical_rank", "svdvals", "tolerance"]

log = logging.getLogger("llr")

_LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined] # public, but not marked so

# Below this ratio of the singular values on either side of the cut, the rank hangs on where the
# cut is made.
CLEAR_GAP = 1e3

# LAPACK's factorisations lose digits with the length of the matrix: on exact low-rank matrices with 3 to
# 5 short-side rows, up to 2 eps at length 1024, 40 eps at 16,384 and 240 eps at 100,000 were measured in
# float64 (and 600 in float32), where the tolerance is a few eps. At 256 it is about one eps. A longer
# short side has a larger tolerance, and longer blocks are faster.
_BLOCK_ROWS = 256
_BLOCKS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class RankResult:
    """A numerical rank and the evidence for it.

    For one matrix the fields are plain numbers; for a batch ``(..., m, n)`` the fields ``rank``,
    ``tol``, ``gap`` and ``ambiguous`` are tensors of the leading shape.

    Attributes:
        rank: number of singular values strictly above ``tol``.
        spectrum: all ``min(m, n)`` singular values, descending, shape ``(..., min(m, n))``.
        tol: the absolute tolerance (see `tolerance`).
        gap: ``sigma_r / sigma_(r+1)`` at the cut, ``inf`` where only exact zeros lie below it. At
            full rank there is no ``sigma_(r+1)`` and ``tol`` takes its place; at rank 0 there is no
            ``sigma_r`` and the gap is ``tol / sigma_1``. Empty and all-zero matrices have gap
            ``inf``.
        ambiguous: whether the gap is below 1e3: the rank then depends on the tolerance.
        method: how the rank was found; ``"svd"`` counts singular values.
        dtype: the precision of the matrix and of its singular values.
        n_rows: rows of the matrix (samples times outputs for a Jacobian).
        n_params: columns of the matrix (parameters for a Jacobian).
        path: the code that computed the Jacobian; None for a matrix given as a tensor.
    """

    rank: int | Tensor
    spectrum: Tensor
    tol: float | Tensor
    gap: float | Tensor
    ambiguous: bool | Tensor
    method: str
    dtype: torch.dtype
    n_rows: int
    n_params: int
    path: str | None = None

    def __str__(self) -> str:
        """One line that says the rank, how clear it is and how it was found."""
        dtype = str(self.dtype).removeprefix("torch.")
        size = f"{self.n_rows} x {self.n_params}"
        how = f"{self.method}, {dtype}" + (f", J by {self.path}" if self.path else "")
        if self.spectrum.dim() > 1:
            line = f"{self._batch_summary()} of shape {size} ({how})"
        else:
            top = f"{self.spectrum[0].item():.3g}" if self.spectrum.numel() else "0"
            line = (
                f"rank {self.rank} of a {size} matrix: {self._cut()} = {self.gap:.3g}, "
                f"tol {self.tol:.3g}, sigma_1 {top} ({how})"
            )
        if bool(torch.as_tensor(self.ambiguous).any()):
            advice = (
                "vary rtol to see how far it moves"
                if self.dtype == torch.float64
                else "compute the matrix in float64"
            )
            line += (
                f"; AMBIGUOUS: gap below {CLEAR_GAP:.0f}, so this is a count of singular values "
                f"above tol and another tol gives another rank; {advice}"
            )
        return line

    def _cut(self) -> str:
        """Name the two numbers whose ratio is the gap."""
        r = self.rank
        above = f"sigma_{r}" if r else "tol"
        below = f"sigma_{r + 1}" if r < self.spectrum.shape[-1] else "tol"
        return f"{above}/{below}"

    def _batch_summary(self) -> str:
        ranks, gaps, flags = (torch.as_tensor(v) for v in (self.rank, self.gap, self.ambiguous))
        if not ranks.numel():
            return "ranks of 0 matrices"
        return (
            f"ranks of {ranks.numel()} matrices from {ranks.min()} to {ranks.max()}, smallest gap "
            f"{gaps.min():.3g}, {int(flags.sum())} ambiguous,"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values that strict JSON can hold.

        Tensors become (nested) lists and the dtype its name. An infinite gap becomes None, since
        JSON has no infinity: ``json.dumps(result.to_dict(), allow_nan=False)`` always works.

        Example:
            >>> import llr, torch
            >>> llr.numerical_rank(torch.zeros(2, 2)).to_dict()["gap"] is None
            True
        """
        return {
            "rank": _plain(self.rank),
            "spectrum": _plain(self.spectrum),
            "tol": _plain(self.tol),
            "gap": _plain(self.gap),
            "ambiguous": _plain(self.ambiguous),
            "method": self.method,
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_rows": self.n_rows,
            "n_params": self.n_params,
            "path": self.path,
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """The axes of a figure of the spectrum, the tolerance and the cut.

        With ``ax=None`` a new figure is made, which ``result.plot().figure.savefig("s.pdf")``
        writes; nothing of pyplot's global state is touched. Needs matplotlib
        (``pip install 'llr[plot]'``), else ImportError.
        """
        from llr import plot  # noqa: PLC0415 - matplotlib is optional

        return plot.spectrum(self, ax=ax)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def check_finite(A: Tensor, what: str, axes: Sequence[str]) -> None:
    """Raise ValueError if `A` has a NaN or Inf entry, saying how many and where the first is.

    `axes` names the last dimensions of `A` in the message; those before them are called "batch".
    """
    # Extremes carry NaN and Inf along, and unlike isfinite(A).all() they need no memory of A's size.
    if A.numel() == 0 or bool(torch.isfinite(torch.stack((A.amin(), A.amax()))).all()):
        return
    bad = (~torch.isfinite(A)).nonzero()
    names = ["batch"] * (A.dim() - len(axes)) + list(axes)
    where = ", ".join(f"{n} {i}" for n, i in zip(names, bad[0].tolist(), strict=True))
    raise ValueError(
        f"{what} has {len(bad)} NaN or Inf entries out of {A.numel()}, the first "
        f"({A[tuple(bad[0])].item()}) at {where}; a rank needs finite numbers"
    )


def _check_matrix(A: Tensor) -> None:
    if not isinstance(A, Tensor):
        raise TypeError(f"expected a torch.Tensor of shape (..., m, n), got {type(A).__name__}")
    if A.dim() < 2:
        raise ValueError(f"expected a matrix or a batch (..., m, n), got shape {tuple(A.shape)}")
    if A.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"singular values need float32 or float64, got {A.dtype}; convert with A.double()"
        )


def svdvals(A: Tensor) -> Tensor:
    """The singular values of a matrix or a batch of matrices, largest first.

    Long thin and short wide matrices are first reduced to a small triangle by blocked QR, so the
    error is a small multiple of eps * sigma_1 whatever the longer side. (LAPACK's direct route
    loses a factor of hundreds at 100,000 columns, more than the tolerance used for ranks allows.)
    The arithmetic is float64 for float32 matrices too, for the same reason: their spectrum is
    limited by the rounding of their entries alone. Matrices with very large or small entries are
    scaled by a power of two first.

    If LAPACK does not converge, the values are computed again as the eigenvalues of the symmetric
    matrix [[0, R], [R', 0]] on the CPU in float64, and a warning is logged.

    Args:
        A: shape ``(..., m, n)``, float32 or float64, any strides. Empty sides are allowed.

    Returns:
        Shape ``(..., min(m, n))``, dtype and device of `A`, without autograd history.

    Raises:
        TypeError: `A` is not a float32 or float64 tensor.
        ValueError: fewer than two dimensions, NaN or Inf entries, or singular values too large
            for the dtype.
        torch.linalg.LinAlgError: no method converged.

    Source: Demmel, Grigori, Hoemmen, Langou, "Communication-optimal parallel and sequential QR and
    LU factorizations", SIAM J. Sci. Comput. 34 (2012), for the blocked QR.

    Example:
        >>> import llr, torch
        >>> llr.svdvals(torch.tensor([[3.0, 0.0], [0.0, -4.0]]))
        tensor([4., 3.])
    """
    _check_matrix(A)
    check_finite(A, "the matrix", ("row", "column"))
    A = A.detach()
    m, n = A.shape[-2:]
    if A.numel() == 0:
        return A.new_zeros((*A.shape[:-2], min(m, n)))
    tall = A.mT if m < n else A
    power = _power_of_two(tall)
    scaled = bool((power != 1).any())
    if scaled:
        tall = tall / power[..., None, None]
    values = _converged_svdvals(_shorten(tall)).to(A.dtype)
    if scaled:
        values = values * power[..., None]
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"the largest singular value is too large for {A.dtype} (entries up to "
            f"{A.abs().max().item():.3g}); divide the matrix by a constant"
        )
    return values


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


def _shorten(tall: Tensor) -> Tensor:
    """A float64 matrix of at most two blocks of rows with the singular values of `tall`."""
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


def _converged_svdvals(tall: Tensor) -> Tensor:
    try:
        values = torch.linalg.svdvals(tall)
        if bool(torch.isfinite(values).all()):
            return values
        problem = "NaN in the result"
    except _LinAlgError as err:
        problem = str(err).strip().splitlines()[0]
    log.warning(
        "the SVD of a %s matrix failed (%s); computing its singular values as eigenvalues of a "
        "symmetric matrix on the CPU in float64",
        " x ".join(map(str, tall.shape)),
        problem,
    )
    R = torch.linalg.qr(tall.cpu(), mode="r").R
    k = R.shape[-1]
    symmetric = R.new_zeros((*R.shape[:-2], 2 * k, 2 * k))
    symmetric[..., :k, k:] = R
    symmetric[..., k:, :k] = R.mT
    values = torch.linalg.eigvalsh(symmetric)[..., k:].flip(-1).clamp(min=0)
    if not bool(torch.isfinite(values).all()):
        raise _LinAlgError(
            f"no method found the singular values of a {tuple(tall.shape)} matrix ({problem})"
        )
    return values.to(tall.device)


def tolerance(
    spectrum: Tensor, short_side: int, *, rtol: float | None = None, atol: float | None = None
) -> Tensor:
    """The value above which a singular value counts: ``max(atol, rtol * sigma_1)``.

    By default ``rtol = eps(dtype) * short_side`` and ``atol = 0``. The short side, not the long
    one: rounding every entry of A perturbs the singular values by at most
    ``eps ||A||_F <= eps sqrt(short_side) sigma_1``, however long the other side is, and `svdvals`
    keeps to the same scale. The usual rule ``eps * max(m, n)`` reaches 1 in float32 at 8.4 million
    columns, which makes the rank of every such matrix 0.

    Args:
        spectrum: singular values, descending, shape ``(..., k)``, float32 or float64.
        short_side: ``min(m, n)`` of the matrix.
        rtol: tolerance relative to sigma_1, finite and >= 0.
        atol: absolute tolerance, finite and >= 0.

    Returns:
        Shape ``(...)``, dtype and device of `spectrum`; an empty spectrum has sigma_1 = 0.

    Raises:
        ValueError: `rtol` or `atol` is negative, NaN or infinite.

    Example:
        >>> import llr, torch
        >>> llr.tolerance(torch.tensor([8.0, 1.0]), 2, rtol=0.25)
        tensor(2.)
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    if rtol is None:
        rtol = torch.finfo(spectrum.dtype).eps * short_side
    largest = spectrum[..., 0] if spectrum.shape[-1] else spectrum.new_zeros(spectrum.shape[:-1])
    return (rtol * largest).clamp(min=atol or 0.0)


def numerical_rank(
    A: Tensor, *, rtol: float | None = None, atol: float | None = None
) -> RankResult:
    """The numerical rank of a matrix or a batch of matrices, with its evidence.

    The rank is the number of singular values strictly above `tolerance`, in the precision of `A`.

    Args:
        A: shape ``(..., m, n)``, float32 or float64. An all-zero or empty matrix has rank 0.
        rtol: tolerance relative to sigma_1; default ``eps * min(m, n)``.
        atol: absolute tolerance; default 0. The larger of the two holds.

    Returns:
        A `RankResult`; batched over the leading dimensions of `A`.

    Raises:
        TypeError, ValueError, torch.linalg.LinAlgError: as `svdvals` and `tolerance`.

    Example:
        >>> import llr, torch
        >>> llr.numerical_rank(torch.ones(3, 4)).rank
        1
    """
    values = svdvals(A)
    m, n = A.shape[-2:]
    tol = tolerance(values, min(m, n), rtol=rtol, atol=atol)
    # Strictly above, or an all-zero matrix (tol 0) would have full rank.
    rank = (values > tol[..., None]).sum(-1)
    # tol stands in for the missing neighbour at either end: sigma_0 and sigma_(k+1).
    ends = tol[..., None]
    extended = torch.cat((ends, values, ends), dim=-1)
    above = extended.gather(-1, rank[..., None])[..., 0]
    below = extended.gather(-1, rank[..., None] + 1)[..., 0]
    gap = torch.where(below > 0, above / below, math.inf)
    if values.shape[-1] == 0:
        gap = torch.full_like(gap, math.inf)
    ambiguous = gap < CLEAR_GAP
    batched = A.dim() > 2
    return RankResult(
        rank=rank if batched else int(rank),
        spectrum=values,
        tol=tol if batched else float(tol),
        gap=gap if batched else float(gap),
        ambiguous=ambiguous if batched else bool(ambiguous),
        method="svd",
        dtype=A.dtype,
        n_rows=m,
        n_params=n,
    )

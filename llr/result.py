"""A rank with its evidence: what it was counted from, how sure it is, and what is proved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from llr.certificate import Certificate

# Below this ratio of the singular values on either side of the cut, the rank hangs on where the
# cut is made.
CLEAR_GAP = 1e3


@dataclass(frozen=True, eq=False)
class RankResult:
    """A rank and the evidence for it.

    For one matrix the fields are plain numbers; for a batch ``(..., m, n)`` the fields ``rank``,
    ``tol``, ``gap`` and ``ambiguous`` are tensors of the leading shape.

    Attributes:
        rank: number of singular values strictly above ``tol``; for method "certified", the proved
            lower bound.
        spectrum: all ``min(m, n)`` singular values, descending, shape ``(..., min(m, n))``.
        tol: the absolute tolerance (see `tolerance`); 0 for "certified", which counts no values.
        gap: ``sigma_r / sigma_(r+1)`` at the cut, ``inf`` where only exact zeros lie below it. At
            full rank there is no ``sigma_(r+1)`` and ``tol`` takes its place; at rank 0 there is no
            ``sigma_r`` and the gap is ``tol / sigma_1``. Empty and all-zero matrices have gap
            ``inf``, and so has "certified".
        ambiguous: whether the rank is open: the gap is below 1e3, so that it depends on the
            tolerance, or a certificate's bounds have not met.
        method: how the rank was found: "svd", "tsqr" and "gram" count singular values, "certified"
            is proved.
        dtype: the precision of the matrix and of its singular values.
        n_rows: rows of the matrix (samples times outputs for a Jacobian).
        n_params: columns of the matrix (parameters for a Jacobian).
        path: the code that computed the Jacobian; None for a matrix given as a tensor.
        lower: what the true rank is proved to be at least; 0 unless method is "certified".
        upper: what it is at most: ``min(n_rows, n_params)``, or better if that is known.
        bits: working precision of the proof; None without one, and for exact rational arithmetic.
        certificate: the proof, for `llr.certify.verify`; None unless method is "certified".
        reason: why this method was taken.
        predicted_bytes: what it was expected to hold in memory at a time, beside the model.
        actual_bytes: what it held: the arrays of that size that it made.
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
    lower: int = 0
    upper: int = 0
    bits: int | None = None
    certificate: Certificate | None = None
    reason: str | None = None
    predicted_bytes: int | None = None
    actual_bytes: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the proved bounds meet, so that the rank is a theorem."""
        return self.lower == self.upper

    def __str__(self) -> str:
        """One line that says the rank, how clear it is and how it was found."""
        dtype = str(self.dtype).removeprefix("torch.")
        size = f"{self.n_rows} x {self.n_params}"
        if self.method == "certified":
            return self._proof(size)
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
            line += (
                f"; AMBIGUOUS: gap below {CLEAR_GAP:.0f}, so this is a count of singular values "
                f"above tol and another tol gives another rank; {self._advice()}"
            )
        return line

    def _advice(self) -> str:
        if self.path is not None:
            return "method='certified' proves a bound"
        if self.dtype != torch.float64:
            return "compute the matrix in float64"
        return "vary rtol to see how far it moves"

    def _proof(self, size: str) -> str:
        arithmetic = "rationals" if self.bits is None else f"{self.bits} bits"
        if self.exact:
            return f"rank {self.rank} of a {size} matrix, proved (certified, {arithmetic})"
        stopped = "" if self.certificate is None else f", {self.certificate.stopped}"
        return (
            f"rank between {self.lower} and {self.upper} of a {size} matrix, proved "
            f"(certified, {arithmetic}{stopped})"
        )

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

        Tensors become (nested) lists, the dtype its name and the certificate its own dict. An
        infinite gap becomes None, since JSON has no infinity:
        ``json.dumps(result.to_dict(), allow_nan=False)`` always works.

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
            "lower": self.lower,
            "upper": self.upper,
            "exact": self.exact,
            "bits": self.bits,
            "certificate": None if self.certificate is None else self.certificate.to_dict(),
            "reason": self.reason,
            "predicted_bytes": self.predicted_bytes,
            "actual_bytes": self.actual_bytes,
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

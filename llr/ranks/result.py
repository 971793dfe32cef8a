"""A rank with its evidence: singular values, bounds, and proofs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llr.linalg.spectrum import CLEAR_GAP, PROVED, is_open
from llr.ranks import consistency
from llr.ranks.certificates.certificate import Certificate
from llr.results import Record
from llr.results.fields import restored
from llr.results.html import Spectrum, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes


NO_CERTIFICATE = "no certificate: "
"""In a reason, what stands before why there can be none."""


@dataclass(frozen=True, eq=False, repr=False)
class RankResult(Record):
    """A rank and the evidence for it.

    For one matrix the fields are plain numbers; for a batch ``(..., m, n)`` the fields ``rank``,
    ``tol``, ``gap``, ``ambiguous``, ``lower`` and ``upper`` are tensors of the leading shape.

    Attributes:
        rank: number of singular values strictly above ``tol``; for method "certified", the proved
            lower bound.
        spectrum: all ``min(m, n)`` singular values of the matrix, descending, shape ``(..., min(m, n))``.
        tol: the threshold of the count: by default a bound of the singular values' errors; with `rtol` or
            `atol` the tolerance. 0 for "certified", which counts no values.
        gap: ``sigma_r / max(sigma_(r+1), tol)``; ``inf`` if both are 0. (With `rtol` or `atol`
            ``sigma_r / sigma_(r+1)``, with ``tol`` in place of a missing value at either end.) Empty and
            all-zero matrices have gap ``inf``, and so has "certified".
        ambiguous: whether the rank is open: ``lower`` and ``upper`` differ, or ``lower`` is an estimate. With
            `rtol` or `atol`, whether the count depends on them: the gap is below 1e3, or some value is within
            its error of the tolerance.
        method: how the rank was found: "svd", "tsqr" and "gram" count singular values, "certified"
            is proved.
        dtype: the precision of the matrix and of its singular values.
        n_rows: rows of the matrix (samples times outputs for a Jacobian).
        n_params: columns of the matrix (parameters for a Jacobian).
        path: the code that computed the Jacobian; None for a matrix given as a tensor.
        lower: a lower bound of the true rank: the number of singular values above their error, or the proved
            rank.
        lower_from: the source of ``lower``: "error bound" (a running error analysis and Weyl's inequality),
            "estimate" (of the error, if there is no rule for a bound: it is measured, not proved) or
            "certificate".
        upper: an upper bound of the true rank.
        upper_from: the source of ``upper``: "shape" (rows and columns), "different samples" (or "samples up
            to sign", for odd functions), "live parameters", "different rows", "zeros", "exact elimination"
            (of a small matrix, whose entries are taken as exact numbers), "theory" (a closed form) or
            "caller" (trusted). For a batch, the sources of all its matrices, such as "shape or different
            rows".
        equilibrated: the singular values of the matrix with its rows and columns multiplied by powers of two,
            if the rank was counted on them: ``tol`` and ``gap`` then belong to these values. None otherwise.
        counted_above: "error" or "tolerance".
        bits: working precision of the proof; None without one, and for exact rational arithmetic.
        certificate: the proof, for `llr.verify`; None unless method is "certified".
        reason: why this method was taken, and what else was tried; for a matrix, its exact rank if that is
            larger than the count.
        predicted_bytes: the memory that the method was expected to use at a time, besides the model.
        actual_bytes: the memory that it used: the sum of its large arrays.
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
    lower: int | Tensor = 0
    lower_from: str = "error bound"
    upper: int | Tensor = 0
    upper_from: str = "shape"
    equilibrated: Tensor | None = None
    counted_above: str = "error"
    bits: int | None = None
    certificate: Certificate | None = None
    reason: str | None = None
    predicted_bytes: int | None = None
    actual_bytes: int | None = None

    _long = ("spectrum", "equilibrated")
    _also = ("clear", "exact")
    _order = ("0 <= tol",)

    @property
    def exact(self) -> bool:
        """Whether the rank is certain, with equal bounds and none estimated; for a batch, all ranks."""
        lower, rank = (torch.as_tensor(v) for v in (self.lower, self.rank))
        return not bool((is_open(lower, self.upper, self.lower_from) | (rank != self.upper)).any())

    @property
    def clear(self) -> bool:
        """Whether there is a gap of 1e3, so that the tolerance does not matter; for a batch, in each matrix.

        It says nothing about the exact rank: singular values of smooth functions decrease so fast that gaps
        of 1e8 occur by chance, with more rank below the gap. A certificate is clear if it is exact, or did
        not grow with the precision.
        """
        if self.certificate is not None:
            return self.exact or self.certificate.stopped == "stopped growing"
        return bool((torch.as_tensor(self.gap) >= CLEAR_GAP).all())

    @property
    def open(self) -> bool:
        """Whether the rank is ambiguous; for a batch, whether any rank is."""
        return bool(torch.as_tensor(self.ambiguous).any())

    def at_most(self, upper: int | Tensor, upper_from: str) -> RankResult:
        """The result with another upper bound, or one for each matrix of a batch, if it is better.

        Raises:
            ValueError: the caller's bound is less than the proved rank.
            RuntimeError: another bound is less than it, which would be a mistake in llr.
        """
        if isinstance(upper, int) and isinstance(self.upper, int) and upper >= self.upper:
            return self
        before, bound = torch.as_tensor(self.upper), torch.as_tensor(upper)
        better = bound < before
        if not bool(better.any()):
            return self
        lower, certain = torch.as_tensor(self.lower), self.lower_from in PROVED
        if certain and bool((wrong := lower > bound).any()):
            least = int(lower[wrong].max())
            if upper_from == "caller":
                raise ValueError(
                    f"upper={upper} is disproved: on these samples the rank is at least {least} "
                    f"({self.lower_from})"
                )
            raise RuntimeError(
                f"the rank is at least {least} ({self.lower_from}), but at most {int(bound.min())} "
                f"({upper_from}): this is a mistake in llr, please report it with the model or the matrix"
            )
        meeting = torch.minimum(before, bound)
        if not bool(better.all()):
            upper_from = " or ".join(dict.fromkeys((*self.upper_from.split(" or "), upper_from)))
        found = replace(self, upper=meeting if lower.dim() else int(meeting), upper_from=upper_from)
        if self.counted_above != "error":
            return found
        # If the count exceeds the upper bound, the estimated error was too small.
        ambiguous, most = is_open(lower, meeting, self.lower_from), lower.minimum(meeting)
        return replace(
            found,
            rank=most if lower.dim() else int(most),
            lower=most if lower.dim() else int(most),
            ambiguous=ambiguous if lower.dim() else bool(ambiguous),
        )

    def or_equilibrated(self, again: RankResult) -> RankResult:
        """This count, or `again`, a count on the same matrices after equilibration, if it is not less."""
        better = torch.as_tensor(again.lower) >= torch.as_tensor(self.lower)
        if not bool(better.any()):
            return self
        fields: dict[str, Any] = {}
        for name in ("rank", "tol", "gap", "lower"):
            own, other = (torch.as_tensor(getattr(r, name)) for r in (self, again))
            value = torch.where(better, other, own)
            fields[name] = value if better.dim() else value.item()
        for name in ("rank", "lower"):
            fields[name] = torch.as_tensor(fields[name]).minimum(torch.as_tensor(self.upper))
            fields[name] = fields[name] if better.dim() else int(fields[name])
        spectrum = torch.where(better[..., None], again.spectrum.to(self.spectrum), self.spectrum)
        found = replace(self, **fields, equilibrated=spectrum)
        ambiguous = is_open(torch.as_tensor(found.lower), self.upper, self.lower_from)
        return replace(found, ambiguous=ambiguous if better.dim() else bool(ambiguous))

    def reshaped(self, shape: Sequence[int]) -> RankResult:
        """A batch with other leading dimensions; () for a single matrix."""
        fields: dict[str, Any] = {}
        for name in ("rank", "tol", "gap", "ambiguous", "lower", "upper"):
            value = torch.as_tensor(getattr(self, name)).reshape(tuple(shape))
            fields[name] = value if value.dim() else value.item()
        for name in ("spectrum", "equilibrated"):
            value = getattr(self, name)
            fields[name] = None if value is None else value.reshape(*shape, value.shape[-1])
        return replace(self, **fields)

    def __str__(self) -> str:
        """One line: the rank, how certain it is and how it was found."""
        dtype = str(self.dtype).removeprefix("torch.")
        size = f"{self.n_rows} x {self.n_params}"
        if self.method == "certified":
            return self._proof(size)
        how = f"{self.method}, {dtype}" + (f", J by {self.path}" if self.path else "")
        if self.spectrum.dim() > 1:
            return f"{self._batch_summary()} of shape {size} ({how})"
        line = f"rank {self.rank} of a {size} matrix{self._known()}: {self._seen()}"
        if self.equilibrated is not None:
            line += " with rows and columns equilibrated"
        line += f" ({how})"
        if self.ambiguous:
            gap = "clear gap" if self.clear else "no clear gap"
            line += f"; AMBIGUOUS ({gap}): {self._doubt()}; {self._advice()}"
        return line

    def _seen(self) -> str:
        """A summary of the singular values in a few numbers."""
        values = self.spectrum if self.equilibrated is None else self.equilibrated
        line = f"{self.counted_above} {self.tol:.3g}"
        if not min(self.n_rows, self.n_params):
            return "no entries"
        if not values.shape[-1]:
            gap = "" if math.isinf(float(self.gap)) else f"gap {self.gap:.3g}, "
            return f"{gap}{line}, singular values not kept"
        if float(values[0]) == 0:
            return "all singular values are 0" + (f", {line}" if self.tol else "")
        if math.isinf(float(self.gap)):  # nothing below to compare with
            last = f", sigma_{self.rank} {float(values[int(self.rank) - 1]):.3g}"
            return f"{line}, sigma_1 {float(values[0]):.3g}{last if self.rank != 1 else ''}"
        return f"{self._cut()} = {self.gap:.3g}, {line}, sigma_1 {float(values[0]):.3g}"

    def _known(self) -> str:
        if self.counted_above != "error" or self.ambiguous:
            return ""
        return f" (exact: upper bound by {self.upper_from})"

    def _doubt(self) -> str:
        if self.counted_above != "error":
            return (
                f"gap below {CLEAR_GAP:.0f}, so this is a count of singular values above the tolerance and "
                "another one gives another rank"
                if not self.clear
                else "a singular value is within its error of the tolerance"
            )
        least = ""
        if self.lower_from not in PROVED:
            if self.lower == self.upper:
                return (
                    f"no larger rank is possible ({self.upper_from}), but the error is estimated, not "
                    "bounded"
                )
            least = ", by an estimate of the error,"
        others = "the other singular values are below their error"
        if self.path is None and self.reason:
            others = f"{others} ({self.reason})"
        return f"the rank is{least} at least {self.lower} and at most {self.upper}, and {others}"

    def _advice(self) -> str:
        if self.reason and NO_CERTIFICATE in self.reason:
            return "no proof is possible (see .reason)"
        if self.path is not None and self.counted_above == "error":
            return "resolve=True tries a proof"
        if self.dtype != torch.float64:
            return "compute the matrix in float64"
        return "vary rtol= to see how far it moves"

    def _proof(self, size: str) -> str:
        arithmetic = "rationals" if self.bits is None else f"{self.bits} bits"
        if self.exact:
            return f"rank {self.rank} of a {size} matrix, proved (certified, {arithmetic})"
        stopped = "" if self.certificate is None else f", {self.certificate.stopped}"
        more = (
            "; more bits may settle it (resolve=True, a larger max_bits)"
            if "precision cap" in stopped
            else ""
        )
        return (
            f"rank between {self.lower} and {self.upper} of a {size} matrix, proved "
            f"(certified, {arithmetic}{stopped}); AMBIGUOUS: the bounds do not meet{more}"
        )

    def _cut(self) -> str:
        """The names of the two numbers whose ratio is the gap."""
        r, line = int(self.rank), self.counted_above
        values = self.spectrum if self.equilibrated is None else self.equilibrated
        above = f"sigma_{r}" if r else line
        drowned = line == "error" and r < len(values) and float(values[r]) <= float(self.tol)
        below = line if r >= len(values) or (drowned and r) else f"sigma_{r + 1}"
        return f"{above}/{below}"

    def _batch_summary(self) -> str:
        ranks, gaps, flags = (torch.as_tensor(v) for v in (self.rank, self.gap, self.ambiguous))
        if not ranks.numel():
            return "ranks of 0 matrices"
        least = float(gaps.min())
        return (
            f"ranks of {ranks.numel()} matrices from {ranks.min()} to {ranks.max()}, "
            f"{'' if math.isinf(least) else f'smallest gap {least:.3g}, '}{int(flags.sum())} ambiguous,"
        )

    def to_dict(self, spectrum: bool = False) -> dict[str, Any]:
        """The fields, and `clear` and `exact`, as plain values for strict JSON.

        Tensors become nested lists, the dtype its name and the certificate a dictionary. An infinite gap
        becomes None, since JSON has no infinity. With ``spectrum=True``, :meth:`from_dict` makes a result
        with fields that are equal to the last bit; ``==`` is False, since it compares identity.

        Args:
            spectrum: whether to include the singular values.

        Example:
            >>> import llr, torch
            >>> found = llr.numerical_rank(torch.zeros(2, 2))
            >>> found.to_dict()["gap"] is None, found.to_dict(spectrum=True)["spectrum"]
            (True, [0.0, 0.0])
        """
        return super().to_dict(spectrum)

    def kept(self, name: str) -> bool:
        """Whether the result has singular values; False if it was written without them."""
        value = getattr(self, name)
        return value is not None and value.shape[-1] == min(self.n_rows, self.n_params)

    def _dtype_of(self, name: str) -> torch.dtype | None:
        return self.dtype if name in self._long else None

    @classmethod
    def _read(cls, name: str, hint: Any, content: Mapping[str, Any], where: str) -> Any:
        if name in cls._long and name not in content.get("tensors", {}):
            dtype = restored(content["dtype"], torch.dtype, "'dtype' of RankResult")
            return restored(content[name], hint, where, dtype)
        return super()._read(name, hint, content, where)

    def _check(self, content: Mapping[str, Any]) -> None:
        consistency.check_shapes(self)
        super()._check(content)

    def _rules(self) -> Iterator[tuple[bool, str]]:
        return consistency.conditions(self)

    def _verdict(self) -> Verdict:
        if self.exact:
            return "exact", "good"
        if self.open:
            flags = torch.as_tensor(self.ambiguous)
            some = f"{int(flags.sum())} of {flags.numel()} " if flags.dim() else ""
            return f"{some}ambiguous" + (", clear gap" if self.clear else ""), "doubt"
        return "counted above the tolerance", "good"

    def _facts(self) -> dict[str, object]:
        numbers: dict[str, object] = {}
        if not torch.as_tensor(self.rank).dim():
            numbers = {
                "rank": int(self.rank),
                "at least": f"{self.lower} ({self.lower_from})",
                "at most": f"{self.upper} ({self.upper_from})",
                "gap": float(self.gap),
                self.counted_above: float(self.tol),
            }
        dtype = str(self.dtype).removeprefix("torch.")
        how = {"matrix": f"{self.n_rows} x {self.n_params}", "method": f"{self.method}, {dtype}"}
        others = {"Jacobian by": self.path, "reason": self.reason}
        return numbers | how | {name: value for name, value in others.items() if value}

    def _pictures(self) -> Sequence[Spectrum]:
        counted = "spectrum" if self.equilibrated is None else "equilibrated"
        values = getattr(self, counted)
        if not self.kept(counted) or values.dim() > 1:
            return ()
        line, name = float(self.tol), self.counted_above
        return (Spectrum(values.tolist(), line, name, "singular values", int(self.rank)),)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The axes of a figure of the spectrum and the tolerance.

        With ``ax=None`` a new figure is made, which ``result.plot().figure.savefig("s.pdf")``
        writes; pyplot's global state does not change. Needs matplotlib
        (``pip install 'llr[plot]'``), else ImportError. ValueError if the spectrum was not kept.
        """
        self._require("spectrum")
        from llr.ranks import figure  # noqa: PLC0415 - matplotlib is optional

        return figure.spectrum(self, ax=ax)

"""The inputs for which a result is claimed, and how well the samples determine the function there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from flint import arb_mat
from torch import Tensor

from llr.inputs.tensors import refuse_complex
from llr.linalg.balls import precision
from llr.recovery.polish import Polished
from llr.recovery.precise import Inputs, floats
from llr.recovery.samples import check_size

_POINTS = 48
_CORNERS = 16  # how many of these points are corners
_BITS = 160  # cancellation between J and its inverse loses fewer than 100 bits


@dataclass(frozen=True, eq=False)
class Domain:
    """A box of inputs.

    Attributes:
        low, high: (d)
        given: whether the caller gave the box; otherwise it is that of the samples.
    """

    low: Tensor
    high: Tensor
    given: bool

    @classmethod
    def of(cls, x: Tensor, domain: object) -> Domain:
        """The box that the caller gave, or the box of the samples.

        Raises:
            TypeError, ValueError: a domain that is no pair of bounds.
        """
        if domain is None:
            return cls(x.amin(0), x.amax(0), False)
        expected = "expected (low, high), each a number or a tensor of shape (d,)"
        if not isinstance(domain, tuple | list) or len(domain) != 2:
            raise TypeError(f"domain is {domain!r}; {expected}")
        bounds = []
        for bound in domain:
            if isinstance(bound, bool) or not isinstance(bound, int | float | Tensor):
                raise TypeError(f"domain has a bound of type {type(bound).__name__}; {expected}")
            refuse_complex("domain", bound)
            t = torch.as_tensor(bound, dtype=torch.float64).detach().cpu()
            if t.dim() > 1 or (t.dim() == 1 and t.shape[0] not in (1, x.shape[1])):
                raise ValueError(
                    f"domain has a bound of shape {tuple(t.shape)}; expected a number or {x.shape[1]} numbers"
                )
            bounds.append(t.expand(x.shape[1]).contiguous())
        low, high = bounds
        for t in bounds:
            if bool(torch.isfinite(t).all()):
                check_size("domain", t[None])
        if not bool((torch.isfinite(low) & torch.isfinite(high) & (low < high)).all()):
            raise ValueError(
                f"domain is from {low.tolist()} to {high.tolist()}; expected finite bounds, low < high"
            )
        return cls(low, high, True)

    @property
    def corner(self) -> Tensor:
        """(d), the largest |x_i|."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def doubled(self) -> Domain:
        """The box, twice as large about its centre; the same box if the caller gave it."""
        if self.given:
            return self
        centre, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return Domain(centre - 2 * half, centre + 2 * half, False)

    def points(self, count: int = _POINTS, corners: int = _CORNERS, seed: int = 0) -> Tensor:
        """(count, d) points: first corners, then uniform points; the same ones at each call."""
        generator = torch.Generator().manual_seed(seed)
        t = torch.rand(count, len(self.low), generator=generator, dtype=torch.float64)
        t[:corners] = t[:corners].round()
        return self.low + (self.high - self.low) * t

    @property
    def name(self) -> str:
        """The name of the box in a sentence."""
        return "the domain given" if self.given else "the box of the samples"


def errors(fit: Polished, inverse: arb_mat, x: Tensor) -> Tensor:
    """(m, q), the first-order error of the function at points if every target has its rounding error."""
    with precision(_BITS):
        J = Inputs(x, fit.form).at(fit.theta).jacobian().mid()
        return floats(J * inverse).abs().sum(1).reshape(len(x), fit.form.q)

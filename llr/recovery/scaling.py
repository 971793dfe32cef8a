"""Scales data to units that suit random starts, and networks back to the caller's units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llr.recovery.net import Net
from llr.recovery.search import Data

_FAR = 2.0  # a mean more than so many standard deviations from zero is shifted to zero
_BITS = 8  # bits of a shift: few, so that shifting hardly rounds the data


@dataclass(frozen=True, eq=False)
class Scaling:
    """``x = shift + scale * x'``, ``y = unit * y'``. Units are powers of two, so that scaling is exact.

    Data of moderate size are not changed.

    Attributes:
        shift: (d)
        scale: (d)
        unit: the unit of the targets.
    """

    shift: Tensor
    scale: Tensor
    unit: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, *, shift: bool) -> Scaling:
        """The units of the data; `shift` (for networks with biases) moves inputs far from zero to zero."""
        mean, moved = x.mean(0), torch.zeros_like(x[0])
        if shift:
            far = mean.abs() > _FAR * (x - mean).square().mean(0).sqrt()
            moved = torch.where(far, _rounded(mean), moved)
        size = (x - moved).square().mean(0).sqrt()
        return cls(moved, _power_of_two(size), float(_power_of_two(y.square().mean().sqrt())))

    def inside(self, x: Tensor, y: Tensor) -> Data:
        """The data in these units."""
        return Data((x - self.shift) / self.scale, y / self.unit)

    def outside(self, net: Net) -> Net:
        """The network for the original data that corresponds to `net` for the scaled data."""
        w = net.w / self.scale
        b = None if net.b is None else net.b - w @ self.shift
        c = None if net.c is None else net.c * self.unit
        return Net(w, b, net.a * self.unit, c, net.activation)


def _power_of_two(size: Tensor) -> Tensor:
    """The nearest power of two; 1 for size 0."""
    exponent = torch.where(size > 0, size, torch.ones_like(size)).log2().round()
    return torch.exp2(exponent)


def _rounded(v: Tensor) -> Tensor:
    """The numbers, rounded to a few bits."""
    mantissa, exponent = torch.frexp(v)
    return torch.ldexp((mantissa * 2**_BITS).round() / 2**_BITS, exponent)

"""Data in units in which random starts make sense, and networks back from there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llr.recovery.net import Net
from llr.recovery.search import Data

_FAR = 2.0  # a mean this many standard deviations from zero is moved there
_BITS = 8  # of a shift, so that shifted data lose little


@dataclass(frozen=True, eq=False)
class Scaling:
    """``x = shift + scale * x'``, ``y = unit * y'``, with powers of two as units: they cost no rounding.

    Data of ordinary size are left as they are.

    Attributes:
        shift: (d)
        scale: (d)
        unit: of the targets.
    """

    shift: Tensor
    scale: Tensor
    unit: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, *, shift: bool) -> Scaling:
        """The units of the data; with `shift` (networks with biases) inputs far from zero are moved there."""
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
        """The network that does to the data what `net` does to them in these units."""
        w = net.w / self.scale
        b = None if net.b is None else net.b - w @ self.shift
        c = None if net.c is None else net.c * self.unit
        return Net(w, b, net.a * self.unit, c, net.activation)


def _power_of_two(size: Tensor) -> Tensor:
    """The nearest one; 1 for nothing."""
    exponent = torch.where(size > 0, size, torch.ones_like(size)).log2().round()
    return torch.exp2(exponent)


def _rounded(v: Tensor) -> Tensor:
    """Numbers of a few bits."""
    mantissa, exponent = torch.frexp(v)
    return torch.ldexp((mantissa * 2**_BITS).round() / 2**_BITS, exponent)

"""Data in units in which random starts make sense, and networks back from there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llr.models import TwoLayer
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

    def outside(self, net: TwoLayer) -> TwoLayer:
        """The network that does to the data what `net` does to them in these units."""
        w = net[0].weight.detach() / self.scale
        b = None if net[0].bias is None else net[0].bias.detach() - w @ self.shift
        a = net[2].weight.detach().T * self.unit
        c = None if net[2].bias is None else net[2].bias.detach() * self.unit
        return TwoLayer.of(w, b, a, c, activation=net[1])


def _power_of_two(size: Tensor) -> Tensor:
    """The nearest one; 1 for nothing."""
    exponent = torch.where(size > 0, size, torch.ones_like(size)).log2().round()
    return torch.exp2(exponent)


def _rounded(v: Tensor) -> Tensor:
    """Numbers of a few bits."""
    mantissa, exponent = torch.frexp(v)
    return torch.ldexp((mantissa * 2**_BITS).round() / 2**_BITS, exponent)

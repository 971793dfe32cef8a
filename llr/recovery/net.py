"""Two-layer networks as plain tensors: a search handles many of them, and modules would be slow."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llr.models import TwoLayer
from llr.operators.formula import ACTIVATIONS


@dataclass(frozen=True, eq=False)
class Net:
    """``sum_j a_j s(w_j . x + b_j) + c`` in float64.

    Attributes:
        w: (k, d)
        b: (k), or None
        a: (q, k)
        c: (q), or None
        activation: the name of the activation.
    """

    w: Tensor
    b: Tensor | None
    a: Tensor
    c: Tensor | None
    activation: str

    @classmethod
    def of(cls, model: TwoLayer, activation: str) -> Net:
        """The network of a module."""
        inner, outer = model[0], model[2]
        b = None if inner.bias is None else inner.bias.detach()
        c = None if outer.bias is None else outer.bias.detach()
        return cls(inner.weight.detach(), b, outer.weight.detach(), c, activation)

    @property
    def width(self) -> int:
        """k."""
        return len(self.w)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters in the order of the module's."""
        return [t for t in (self.w, self.b, self.a, self.c) if t is not None]

    def before(self, x: Tensor) -> Tensor:
        """Preactivations (n, k)."""
        z = x @ self.w.T
        return z if self.b is None else z + self.b

    def __call__(self, x: Tensor) -> Tensor:
        """Values (n, q)."""
        y = ACTIVATIONS[self.activation][0](self.before(x)) @ self.a.T
        return y if self.c is None else y + self.c

    def without(self, i: int) -> Net:
        """The network without neuron i."""
        keep = [j for j in range(self.width) if j != i]
        b = None if self.b is None else self.b[keep]
        return Net(self.w[keep], b, self.a[:, keep], self.c, self.activation)

    def model(self) -> TwoLayer:
        """The network as a module."""
        return TwoLayer.of(
            self.w, self.b, self.a.T.contiguous(), self.c, activation=self.activation
        )

"""A function of a two-layer network in its shortest form."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from llr.theory.structures.groups import PARITY, group_neurons
from llr.theory.structures.structure import Row, TwoLayerNet, read_structure


@dataclass(frozen=True)
class Target:
    """``sum_g alpha_g s(w_g . x + b_g) + gamma`` with distinct neurons and alpha_g not 0."""

    activation: str
    w: tuple[Row, ...]
    b: tuple[Fraction, ...]
    """Hidden biases; 0 if there are none."""
    alpha: tuple[Row, ...]
    constants: tuple[tuple[Fraction, Row], ...]
    """(b, a) of the neurons with w = 0, which contribute to gamma; b > 0 distinct, a not 0."""
    c: Row
    """The output bias; 0 without."""
    d: int
    q: int
    beta: int
    output_bias: bool

    @property
    def k(self) -> int:
        """How many neurons it has."""
        return len(self.w)

    @property
    def shifted(self) -> bool:
        """Whether gamma is not 0. Exact without an output bias; with one, the answer does not matter.

        Values of tanh, and of erf, at distinct positive rational numbers are linearly independent over the
        rationals.
        """
        return bool(self.constants) or any(self.c)

    def n_params(self, m: int) -> int:
        """P in width m."""
        return m * (self.q + self.d + self.beta) + self.q * self.output_bias


def read_target(model: nn.Module) -> Target:
    """The function of a two-layer network with an odd activation.

    Raises:
        TypeError: no module.
        ValueError: another structure or activation.
    """
    net = read_structure(model)
    odd = [name for name, parity in PARITY.items() if parity == "odd"]
    if not isinstance(net, TwoLayerNet) or net.activation not in odd:
        kind = getattr(net, "activation", "linear")
        raise ValueError(
            f"target is a {type(net).__name__} ({kind}); expected a two-layer network with {' or '.join(odd)}"
        )
    grouping = group_neurons(net)
    groups = [g for g in grouping.groups if not g.cancels]
    zero = (Fraction(0),) * net.q
    constants: dict[Fraction, Row] = {}
    for i in grouping.constants:
        b = net.b[i] if net.b is not None else Fraction(0)
        if b:
            old, sign = constants.get(abs(b), zero), 1 if b > 0 else -1
            constants[abs(b)] = tuple(u + sign * v for u, v in zip(old, net.a[i], strict=True))
    return Target(
        activation=net.activation,
        w=tuple(g.w for g in groups),
        b=tuple(g.b if g.b is not None else Fraction(0) for g in groups),
        alpha=tuple(g.weight for g in groups),
        constants=tuple((b, a) for b, a in constants.items() if any(a)),
        c=zero if net.c is None else net.c,
        d=net.d,
        q=net.q,
        beta=net.beta,
        output_bias=net.c is not None,
    )

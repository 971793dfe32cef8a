"""A function of a two-layer network in its shortest form, which depends only on the function."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import lcm

from flint import arb, fmpq

from llr.linalg.balls import ACTIVATIONS, precision
from llr.theory.structures.groups import PARITY, Group, group_neurons
from llr.theory.structures.structure import Matrix, Row, TwoLayerNet

_BITS = 1024


@dataclass(frozen=True)
class NeuronSum:
    """``sum_g alpha_g s(w_g . x + b_g) + affine(x) + sum_j v_j s(b_j)``, distinct neurons, alpha_g not 0.

    Equal functions have equal forms, up to the order and the signs of the neurons: the neurons are linearly
    independent modulo affine functions, and the numbers s(b_j) and 1 are linearly independent over the
    rationals.
    """

    activation: str
    w: Matrix
    b: Row
    """0 without hidden biases."""
    alpha: Matrix
    """(k, q)"""
    affine: Row
    """(q (d + 1)): coefficients of the inputs and of 1, output by output."""
    numbers: tuple[tuple[Fraction, Row], ...]
    """(b_j, v_j) of irrational constants."""
    d: int

    @property
    def k(self) -> int:
        """The number of neurons."""
        return len(self.w)

    @property
    def planes(self) -> Matrix:
        """What a reflection subtracts: alpha_g (w_g . x + b_g), or alpha_g for sigmoid; (k, q (d + 1))."""
        sigmoid = PARITY[self.activation] == "odd+const"
        return tuple(
            tuple(
                u * v
                for u in alpha
                for v in ((*(0 * x for x in w), Fraction(1)) if sigmoid else (*w, b))
            )
            for w, b, alpha in zip(self.w, self.b, self.alpha, strict=True)
        )

    @property
    def further(self) -> Matrix:
        """The vectors v_j as affine functions, (., q (d + 1))."""
        zeros = (Fraction(0),) * self.d
        return tuple(tuple(entry for v in row for entry in (*zeros, v)) for _, row in self.numbers)

    @property
    def constant(self) -> bool:
        """Whether the affine part has a nonzero constant."""
        last = self.affine[self.d :: self.d + 1]
        return any(last) or bool(self.numbers)


def neuron_sum(net: TwoLayerNet) -> NeuronSum:
    """Merge the neurons of a network that share a hyperplane, and collect its affine part.

    The reflections s(-z) = -s(z), 1 - s(z), s(z) - z add constants and affine functions. So do neurons with
    w = 0. Their values are rational for ReLU and at 0; all other values are kept as separate numbers. For
    tanh, sigmoid, SiLU and softplus these numbers are independent by Lindemann's theorem. The values of erf
    are independent of each other by Beukers' refinement of the theorem of Siegel and Shidlovskii.

    Args:
        net: a network with an activation that is neither sine nor a polynomial.

    Source: docs/theory.md, Lemma 2.1 and Theorem 2.3.

    Example:
        >>> import torch
        >>> from llr.models import TwoLayer
        >>> from llr.theory import read_structure
        >>> w, a = torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [3.0]])
        >>> found = neuron_sum(read_structure(TwoLayer.of(w, None, a, activation="relu")))
        >>> [str(v) for v in (*found.alpha[0], *found.affine)]  # 5 relu(x) - 3 x
        ['5', '-3', '0']
    """
    parity, q, size = PARITY[net.activation], net.q, net.d + 1
    affine = [[Fraction(0)] * size for _ in range(q)]
    grouping = group_neurons(net)
    for g in grouping.groups:
        left = _left_by_reflection(net, g)
        for i, sign, scale in zip(g.members, g.signs, g.scales, strict=True):
            if sign < 0 and parity != "odd":
                for j in range(q):
                    affine[j] = [
                        x + net.a[i][j] * scale * y for x, y in zip(affine[j], left, strict=True)
                    ]
    numbers: dict[Fraction, list[Fraction]] = {}
    for i in grouping.constants:
        b = Fraction(0) if net.b is None else net.b[i]
        factor, rational = _constant(net.activation, b)
        for j in range(q):
            affine[j][-1] += net.a[i][j] * rational
            numbers.setdefault(abs(b), [Fraction(0)] * q)[j] += net.a[i][j] * factor
    for j, value in enumerate(net.c or ()):
        affine[j][-1] += value
    kept = [g for g in grouping.groups if not g.cancels]
    return NeuronSum(
        activation=net.activation,
        w=tuple(g.w for g in kept),
        b=tuple(g.b or Fraction(0) for g in kept),
        alpha=tuple(g.weight for g in kept),
        affine=tuple(v for row in affine for v in row),
        numbers=tuple((b, tuple(v)) for b, v in sorted(numbers.items()) if any(v)),
        d=net.d,
    )


def without_constants(vectors: Matrix, d: int) -> Matrix:
    """Affine functions, (., q (d + 1)), modulo constants: (., q d)."""
    return tuple(tuple(v for j, v in enumerate(row) if j % (d + 1) != d) for row in vectors)


def check_irrational(f: NeuronSum) -> None:
    """Check that the irrational constants of f are not fractions that reflections could produce.

    For most activations this is a theorem. For values of erf, which GELU has too, only their independence of
    each other is a theorem. Here the constants are enclosed in balls and multiplied by the denominators that
    occur.

    Raises:
        ValueError: they may be such fractions, which is practically impossible.
    """
    if not f.numbers or f.activation not in ("erf", "gelu"):
        return
    common = lcm(*(v.denominator for row in (f.affine, *f.planes) for v in row))
    value = ACTIVATIONS[f.activation][0]
    with precision(_BITS):
        for component in zip(*(row for _, row in f.numbers), strict=True):
            total = arb(0)
            for (b, _), v in zip(f.numbers, component, strict=True):
                total += arb(_fmpq(v)) * value(arb(_fmpq(b)))
            if not (total * common).contains_integer():
                return
    raise ValueError(
        f"the constant part of the function seems to be a fraction of {common}, although it has values of "
        f"{f.activation} in it; move the biases of the neurons with w = 0"
    )


def _fmpq(v: Fraction) -> fmpq:
    return fmpq(v.numerator, v.denominator)


def _left_by_reflection(net: TwoLayerNet, group: Group) -> Row:
    """s(-z) + s(z) for sigmoid, s(-z) - s(z) for the hinges: an affine function."""
    if PARITY[net.activation] == "odd+const":
        return (*(Fraction(0),) * net.d, Fraction(1))
    return (*(-v for v in group.w), -(group.b or Fraction(0)))


def _constant(activation: str, b: Fraction) -> tuple[int, Fraction]:
    """(f, r) with s(b) = f s(|b|) + r, where s(|b|) is irrational or f = 0."""
    parity = PARITY[activation]
    if activation == "relu":
        return 0, max(b, Fraction(0))
    if b == 0 and activation != "softplus":
        return 0, Fraction(1, 2) if parity == "odd+const" else Fraction(0)
    if b >= 0:
        return 1, Fraction(0)
    if parity == "odd":
        return -1, Fraction(0)
    return (-1, Fraction(1)) if parity == "odd+const" else (1, b)

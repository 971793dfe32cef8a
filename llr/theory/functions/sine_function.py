"""Model ranks of functions of sine, whose neurons of one direction add up for all phases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations

from llr.theory.functions.prices import Rank, not_in_width
from llr.theory.result import Term
from llr.theory.structures.groups import group_neurons
from llr.theory.structures.structure import Row, TwoLayerNet
from llr.theory.tangents.periodic import phases

Wave = dict[Fraction, Row]
"""Phase -> outgoing weights, none of which is 0."""


def sine_rank(target: TwoLayerNet, net: TwoLayerNet) -> Rank:
    """The smallest dim T with a function of sines in the architecture `net`.

    The neurons of one direction together make C cos(w . x) + S sin(w . x). If C and S are parallel, one
    neuron with a suitable phase makes the same function, otherwise two neurons do. A constant comes from a
    neuron with w = 0 and bias pi/2, where the slope is zero.

    Args:
        target: a network with the function.
        net: the architecture.

    Returns:
        A lower bound, and the summands of an upper bound, which is equal to it.

    Raises:
        ValueError: the function does not fit.

    Source: docs/theory.md, Theorem 2.5.
    """
    found = [w for w in _waves(target, signed=True) if w]
    if net.b is None:
        if any(_has_cosine(w) for w in found):
            raise ValueError(
                "the target has sines with phases, and the architecture has no hidden biases (bias=True)"
            )
        found = [w for w in _waves(target, signed=False) if w]
    both = sum(1 for w in found if net.b is not None and _is_ellipse(w))
    one = len(found) - both
    q, each = net.q, net.q + net.d + net.beta
    terms, neurons = [], one + 2 * both
    if one:
        words = f"{q} + {net.d}" + " + 1" * net.beta
        terms.append(Term(one * each, f"{_directions(one)} at one phase: {one} ({words})"))
    if both:
        words = f"{_directions(both)} at two phases: {both} (2 * {q} + 2 * {net.d})"
        terms.append(Term(both * (2 * q + 2 * net.d), words))
    if net.c is not None:
        terms.append(Term(q, "constants, from the output bias"))
    elif _has_constant(target):
        if net.b is None:
            raise ValueError(
                "the function has a constant part, which sin makes with a bias only; the architecture has "
                "none (bias=True or output_bias=True)"
            )
        neurons += 1
        terms.append(Term(q, "a constant, from a neuron with w = 0 where the slope is zero"))
    if neurons > net.m:
        raise not_in_width(net, f"{neurons} neurons")
    return sum(t.dimension for t in terms), terms


def _directions(count: int) -> str:
    return f"{count} direction{'s' * (count > 1)}"


def _waves(net: TwoLayerNet, *, signed: bool) -> Iterator[Wave]:
    """The outgoing weights of each direction, summed by phase; if not `signed`, only those of sin(w . x)."""
    for group in group_neurons(net).groups:
        total: defaultdict[Fraction, Row] = defaultdict(lambda: (Fraction(0),) * net.q)
        for i, sign, phase in zip(group.members, group.signs, phases(net, group), strict=True):
            key = phase if signed else abs(phase)
            total[key] = tuple(x + sign * y for x, y in zip(total[key], net.a[i], strict=True))
        yield {phase: a for phase, a in total.items() if any(a)}


def _has_cosine(wave: Wave) -> bool:
    """Whether the direction has a part C cos(w . x).

    It does unless weights at opposite phases cancel: sines of distinct positive rationals are linearly
    independent over the rationals, by Lindemann's theorem.
    """
    return any(phase and wave.get(-phase) != a for phase, a in wave.items())


def _is_ellipse(wave: Wave) -> bool:
    """Whether C and S are linearly independent.

    Their minors are sums of rationals times the sines of differences of phases. Such a sum is zero only if
    the coefficients of each difference are zero.
    """
    q = len(next(iter(wave.values())))
    return any(
        _minor_differs_from_zero(list(wave.items()), j, k) for j, k in combinations(range(q), 2)
    )


def _minor_differs_from_zero(wave: Sequence[tuple[Fraction, Row]], j: int, k: int) -> bool:
    coefficients: defaultdict[Fraction, Fraction] = defaultdict(Fraction)
    for (phi, a), (psi, b) in combinations(wave, 2):
        minor = a[j] * b[k] - a[k] * b[j]
        coefficients[abs(phi - psi)] += minor if phi > psi else -minor
    return any(coefficients.values())


def _has_constant(net: TwoLayerNet) -> bool:
    """Whether the constant part, a rational number and sines of rationals, differs from 0."""
    sines: defaultdict[Fraction, Row] = defaultdict(lambda: (Fraction(0),) * net.q)
    for i in group_neurons(net).constants:
        b = Fraction(0) if net.b is None else net.b[i]
        if b:
            sign = 1 if b > 0 else -1
            row = zip(sines[abs(b)], net.a[i], strict=True)
            sines[abs(b)] = tuple(x + sign * y for x, y in row)
    return any(net.c or ()) or any(any(row) for row in sines.values())

"""Two-layer networks of polynomials: tangent spaces of bounded dimension, ranked exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import chain, combinations
from math import comb

from llr.theory.result import Dimension, Term
from llr.theory.structures.structure import Row, TwoLayerNet, rank

# A larger Jacobian is computed on fewer points than determine a polynomial.
ENTRIES = 1_000_000

# (n, N, k): the span of k powers of degree n of linear forms in N variables has one dimension less than
# expected.
_EXCEPTIONS = {(3, 5, 7), (4, 3, 5), (4, 4, 9), (4, 5, 14)}


def polynomial_tangent(net: TwoLayerNet) -> Dimension:
    """dim T of a two-layer network of polynomials, as an exact rank.

    Args:
        net: a network with the activation "polynomial".

    Returns:
        The rank of the rational Jacobian on the points with nonnegative integer coordinates of sum at most
        the degree: a polynomial that vanishes on them is zero. If there are too many such points for a large
        network, the result has bounds from fewer points.

    Source: docs/theory.md, Theorem 2.6.
    """
    n = degree(net.coefficients)
    count, P = comb(n + net.d, net.d), net.n_params
    most = min(P, net.q * ambient(net))
    if count * net.q * P <= ENTRIES:
        lower = upper = rank(_jacobian(net, lattice(net.d, n)))
        text = (
            f"exact rank on the {count} points that determine a polynomial of degree {n} in {net.d} "
            f"variables, at most {most}"
        )
    else:
        lower, upper = rank(_jacobian(net, random_points(net.d, P))), most
        text = (
            f"at most the smaller of the parameters and the polynomials; {lower} on {P} random points, since "
            f"the {count} that determine a polynomial are too many"
        )
    return Dimension(
        what="dim T",
        lower=lower,
        upper=upper,
        status="exact" if lower == upper else "bounds",
        terms=(Term(upper, text),),
        statement="Theorem 2.6",
        n_params=P,
    )


def polynomial_generic_rank(net: TwoLayerNet) -> Dimension:
    """dim T at almost all parameters of this architecture, independently of the parameters of `net`.

    Returns:
        For monomials with one output the value by a theorem. Otherwise an upper bound, and a lower bound that
        is proved at random integers; often they are equal.

    Source: docs/theory.md, Theorem 2.6; J. Alexander and A. Hirschowitz, "Polynomial interpolation in several
    variables", Journal of Algebraic Geometry 4 (1995).
    """
    most, text = _generic_bound(net)
    if _is_monomial(net.coefficients) and net.q == 1 and net.c is None:
        lower = most
    else:
        lower = polynomial_tangent(_at_random(net)).lower
        if lower < most:
            text += f"; {lower} at random integer parameters"
    return Dimension(
        what="generic rank",
        lower=lower,
        upper=most,
        status="exact" if lower == most else "bounds",
        terms=(Term(most, text),),
        statement="Theorem 2.6",
        n_params=net.n_params,
    )


def degree(coefficients: Row) -> int:
    """The degree of a polynomial; 0 for the polynomial 0."""
    return max((k for k, c in enumerate(coefficients) if c), default=0)


def ambient(net: TwoLayerNet) -> int:
    """The dimension of the space of polynomials that contains each output of functions in T."""
    d, degrees = net.d, {k for k, c in enumerate(net.coefficients) if c}
    if net.c is not None:
        degrees.add(0)
    if net.beta and degrees:
        return comb(max(degrees) + d, d)
    return sum(comb(k + d - 1, k) for k in degrees)


def alexander_hirschowitz(n: int, N: int, k: int) -> int:
    """The dimension of the span of ``l_i^(n-1) L`` for k generic linear forms l_i in N variables.

    L are all linear forms. It is the rank of k neurons z^n of a two-layer network with one output, with N the
    number of inputs and hidden biases of a neuron.

    Source: J. Alexander and A. Hirschowitz, "Polynomial interpolation in several variables", Journal of
    Algebraic Geometry 4 (1995).

    Example:
        >>> alexander_hirschowitz(4, 5, 14), min(14 * 5, 70)
        (69, 70)
    """
    if n == 0:
        return min(k, 1)
    if n == 2:
        k = min(k, N)
        return k * N - k * (k - 1) // 2
    return min(k * N, comb(N + n - 1, n)) - ((n, N, k) in _EXCEPTIONS)


def _generic_bound(net: TwoLayerNet) -> tuple[int, str]:
    """An upper bound of dim T in this architecture, and its reason."""
    n, N, k = degree(net.coefficients), net.d + net.beta, net.m
    constants = 0 if net.c is None else net.q
    most = net.q * ambient(net)
    monomial = _is_monomial(net.coefficients)
    if net.q == 1 and monomial:
        powers = alexander_hirschowitz(n, N, k)
        text = f"{k} powers z^{n} in {N} variables (Alexander and Hirschowitz)"
    elif net.q == 1 and n == 2 and net.beta:
        # s(z) = c y^2 + e, where y = z + b/(2c) is another affine function: y^2, and a constant if e is not
        # 0.
        e, b, c = net.coefficients[:3]
        powers = alexander_hirschowitz(2, N, k)
        text = f"{k} squares in {N} variables (Alexander and Hirschowitz)"
        if 4 * c * e != b * b and not constants:
            powers, text = powers + 1, text + ", and constants"
    else:
        powers = k * (net.q + N - monomial)
        text = f"{k} neurons of {net.q + N - monomial} each"
    if constants:
        text += f", {constants} for the output bias"
    if powers + constants > most:
        return most, f"all polynomials that T can contain: {net.q} x {ambient(net)}"
    return powers + constants, text


def _is_monomial(coefficients: Row) -> bool:
    return sum(1 for c in coefficients if c) == 1


def _at_random(net: TwoLayerNet) -> TwoLayerNet:
    """The architecture at random integers, the same in every call."""
    chance = random.Random(0)

    def row(size: int) -> Row:
        return tuple(Fraction(chance.randint(-999, 999)) for _ in range(size))

    return replace(
        net,
        w=tuple(row(net.d) for _ in net.w),
        b=None if net.b is None else row(net.m),
        a=tuple(row(net.q) for _ in net.a),
    )


def lattice(d: int, n: int) -> Iterator[tuple[int, ...]]:
    """The points of d nonnegative integers whose sum is at most n."""
    for bars in combinations(range(n + d), d):
        yield tuple(bar - before - 1 for before, bar in zip((-1, *bars), bars, strict=False))


def random_points(d: int, count: int) -> Iterator[tuple[int, ...]]:
    """Random points of integers, the same in every call."""
    chance = random.Random(0)
    return (tuple(chance.randint(-99, 99) for _ in range(d)) for _ in range(count))


def _jacobian(net: TwoLayerNet, points: Iterator[tuple[int, ...]]) -> list[list[Fraction]]:
    """The exact Jacobian: a row for every point and output, columns neuron by neuron."""
    slopes = tuple(k * c for k, c in enumerate(net.coefficients))[1:]
    rows = []
    for x in points:
        inputs = (*x, 1) if net.beta else x
        values, inner = [], []
        for i, w in enumerate(net.w):
            z = sum((u * v for u, v in zip(w, x, strict=True)), Fraction(0))
            if net.b is not None:
                z += net.b[i]
            values.append(evaluate(net.coefficients, z))
            slope = evaluate(slopes, z)
            inner.append([slope * v for v in inputs])
        for j in range(net.q):
            outgoing = [v if j == k else Fraction(0) for v in values for k in range(net.q)]
            incoming = chain.from_iterable(
                [net.a[i][j] * v for v in derivatives] for i, derivatives in enumerate(inner)
            )
            constants = [] if net.c is None else [Fraction(j == k) for k in range(net.q)]
            rows.append([*outgoing, *incoming, *constants])
    return rows


def evaluate(coefficients: Row, z: Fraction) -> Fraction:
    """The value of a polynomial."""
    value = Fraction(0)
    for c in reversed(coefficients):
        value = value * z + c
    return value

"""Neurons of sine that share a direction, which interact for all phases."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, product

from flint import arb, arb_mat, fmpq, fmpq_mat

from llr.linalg.balls import precision
from llr.linalg.elimination import Scaled, find_pivots, prove
from llr.theory.structures.groups import Group
from llr.theory.structures.structure import Row, TwoLayerNet, rank

# Balls prove a full rank immediately. An exact decision expands minors of twice as many rows as there are
# outputs, over all halves of the rows: 924 products for six outputs.
_BITS = 256
_EXPANDED = 6


def phases(net: TwoLayerNet, group: Group) -> Row:
    """The phase of each member, relative to the direction of the first member."""
    if net.b is None:
        return tuple(Fraction(0) for _ in group.members)
    return tuple(s * net.b[i] for i, s in zip(group.members, group.signs, strict=True))


def sine_group(net: TwoLayerNet, group: Group) -> tuple[int, int]:
    """Bounds of the number of dimensions that the neurons of one direction add to T.

    The bounds differ only for more than six outputs, if outgoing weights and phases are in special position.

    Source: docs/theory.md, Theorem 2.5.
    """
    found = phases(net, group)
    if len(set(found)) == 1:
        dimension = net.q + group.rank * (net.d + net.beta)
        return dimension, dimension
    lower, upper = turned_rank([net.a[i] for i in group.members], found)
    return 2 * net.q + net.d * lower, 2 * net.q + net.d * upper


def turned_rank(a: Sequence[Row], angles: Sequence[Fraction]) -> tuple[int, int]:
    """Bounds of the rank of the vectors ``a_i (x) (cos phi_i, sin phi_i)``, equal up to six outputs.

    Over the complex numbers they are ``(a_i, e^(-2i phi_i) a_i)``, up to factors and a change of basis. The
    minors are sums of rational numbers times exponentials of distinct rational multiples of i, and by
    Lindemann and Weierstrass such a sum is zero only if each of its coefficients is: the rank is decided
    exactly.

    Args:
        a: (k, q), rational.
        angles: the k angles, rational.

    Source: docs/theory.md, Theorem 2.5.

    Example:
        >>> from fractions import Fraction as F
        >>> turned_rank([(F(1),), (F(2),), (F(3),)], [F(0), F(1, 2), F(5)])
        (2, 2)
    """
    rows = _independent(a, angles)
    columns = _leading([row for row, _ in rows])
    most = min(len(rows), 2 * len(columns))
    lower = _rank_in_balls(rows)
    if lower == most or len(columns) > _EXPANDED:
        return lower, most
    exact = _expanded_rank([([row[j] for j in columns], phi) for row, phi in rows], most)
    return exact, exact


_Turned = Sequence[tuple[Sequence[Fraction], Fraction]]
"""Vectors and their angles."""


def _independent(a: Sequence[Row], angles: Sequence[Fraction]) -> list[tuple[Row, Fraction]]:
    """A largest set of independent vectors for each angle."""
    kept = []
    for phi in dict.fromkeys(angles):
        same = [row for row, angle in zip(a, angles, strict=True) if angle == phi]
        for size, row in enumerate(same):
            if rank(same[: size + 1]) > rank(same[:size]):
                kept.append((row, phi))
    return kept


def _leading(rows: Sequence[Row]) -> list[int]:
    """The columns that raise the rank."""
    columns = list(zip(*rows, strict=True))
    return [j for j in range(len(columns)) if rank(columns[: j + 1]) > rank(columns[:j])]


def _rank_in_balls(rows: _Turned) -> int:
    """A proved lower bound of the rank."""
    if not rows:
        return 0
    with precision(_BITS):
        entries = []
        for row, phi in rows:
            angle = arb(fmpq(phi.numerator, phi.denominator))
            values = [arb(fmpq(v.numerator, v.denominator)) for v in row]
            entries += [v * angle.cos() for v in values] + [v * angle.sin() for v in values]
        A = Scaled(arb_mat(len(rows), 2 * len(rows[0][0]), entries), _BITS)
    return prove(A, find_pivots(A))[0]


def _expanded_rank(rows: _Turned, most: int) -> int:
    """The rank: the size of a nonzero minor that no further row and column can extend."""
    at: list[int] = []
    columns: list[int] = []
    width = 2 * len(rows[0][0])
    while len(at) < most:
        further = product(
            (i for i in range(len(rows)) if i not in at),
            (j for j in range(width) if j not in columns),
        )
        larger = (([*at, i], [*columns, j]) for i, j in further)
        found = next((m for m in larger if _minor_differs_from_zero(rows, *m)), None)
        if found is None:
            break
        at, columns = found
    return len(at)


def _minor_differs_from_zero(rows: _Turned, at: Sequence[int], columns: Sequence[int]) -> bool:
    """Whether a minor is not 0, by Laplace's expansion along the right half, collected by exponents."""
    q = len(rows[0][0])
    left, right = [j for j in columns if j < q], [j - q for j in columns if j >= q]
    coefficients: dict[Fraction, fmpq] = {}
    for turned in combinations(range(len(at)), len(right)):
        rest = [at[k] for k in range(len(at)) if k not in turned]
        chosen = [at[k] for k in turned]
        term = _determinant(rows, chosen, right) * _determinant(rows, rest, left)
        exponent = sum((rows[i][1] for i in chosen), Fraction(0))
        sign = -1 if sum(turned) % 2 else 1
        coefficients[exponent] = coefficients.get(exponent, fmpq(0)) + sign * term
    return any(c != 0 for c in coefficients.values())


def _determinant(rows: _Turned, at: Sequence[int], columns: Sequence[int]) -> fmpq:
    if not at:
        return fmpq(1)
    entries = [rows[i][0][j] for i in at for j in columns]
    fractions = [fmpq(v.numerator, v.denominator) for v in entries]
    return fmpq_mat(len(at), len(at), fractions).det()

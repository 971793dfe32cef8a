"""Ranks and combinations of formal vectors, in rational numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

from flint import fmpq, fmpq_mat

from llr.theory.spans.symbols import Monomial, Vector, primitive
from llr.theory.structures.structure import rank


def formal_rank(vectors: Sequence[Vector]) -> int:
    """The rank of formal vectors, an upper bound of the dimension of the span of their functions.

    Numbers such as tanh(1) that are a factor of all monomials of a vector are divided out; other numbers are
    treated as independent of each other.

    Example:
        >>> from llr.models import mlp
        >>> from llr.theory.spans.formal import formal
        >>> from llr.theory.spans.formal_span import formal_rank
        >>> formal_rank(formal(mlp([2, 5, 1])).neurons[0])
        5
    """
    # Count multiples of each other, such as the derivatives of copies, only once.
    distinct = {
        frozenset(row.items()): row for v in vectors if v for row in [_scaled(primitive(v)[1])]
    }
    rows = dict(enumerate(distinct.values()))
    where: dict[Monomial, set[int]] = defaultdict(set)
    for i, row in rows.items():
        for m in row:
            where[m].add(i)
    found = 0
    # A vector with a monomial that no other vector has is independent of the others.
    private = [m for m, owners in where.items() if len(owners) == 1]
    while private:
        owners = where[private.pop()]
        if not owners:
            continue
        (i,) = owners
        found += 1
        for m in rows.pop(i):
            where[m].discard(i)
            if len(where[m]) == 1:
                private.append(m)
    columns = [m for m, owners in where.items() if owners]
    return found + rank([[row.get(m, 0) for m in columns] for row in rows.values()])


def _scaled(v: Vector) -> dict[Monomial, Fraction]:
    """The multiple of a vector with coefficient 1 at its first monomial."""
    first = v[min(v)]
    return {m: c / first for m, c in v.items()}


def contained(small: Sequence[Vector], large: Sequence[Vector]) -> bool:
    """Whether every vector of `small` is formally a linear combination of those in `large`.

    If so, the functions of `small` lie in the span of those of `large`. If not, they may still lie in it.

    Args:
        small: vectors in the same symbols as `large`.
        large: the vectors of the span.

    Example:
        >>> from fractions import Fraction
        >>> from llr.theory.spans.formal_span import contained
        >>> x, y = {(1,): Fraction(1)}, {(2,): Fraction(1)}
        >>> contained([x], [x, y]), contained([x, y], [x])
        (True, False)
    """
    return formal_rank([*large, *small]) == formal_rank(large)


def combination(small: Sequence[Vector], large: Sequence[Vector]) -> list[list[Fraction]] | None:
    """The coefficients of the vectors of `small` as linear combinations of those of `large`.

    Returns:
        C with small'_i = sum_j C[i][j] large'_j, where v' is v divided by the numbers that are a factor of
        it (:func:`llr.theory.spans.symbols.primitive`); None if there are no such coefficients.

    Example:
        >>> from fractions import Fraction
        >>> from llr.theory.spans.formal_span import combination
        >>> x, y = {(1,): Fraction(1)}, {(2,): Fraction(3)}
        >>> combination([{(1,): Fraction(2), (2,): Fraction(1)}], [x, y])
        [[Fraction(2, 1), Fraction(1, 3)]]
    """
    vectors = [primitive(v)[1] for v in (*large, *small)]
    monomials = list(dict.fromkeys(m for v in vectors for m in v))
    if not monomials:
        return [[Fraction(0)] * len(large) for _ in small]
    columns = [[v.get(m, Fraction(0)) for v in vectors] for m in monomials]
    entries = [fmpq(c.numerator, c.denominator) for row in columns for c in row]
    reduced, r = fmpq_mat(len(monomials), len(vectors), entries).rref()
    table = reduced.tolist()
    pivots = [next(j for j, v in enumerate(table[i]) if v != 0) for i in range(r)]
    if any(j >= len(large) for j in pivots):
        return None
    C = [[Fraction(0)] * len(large) for _ in small]
    for i, j in enumerate(pivots):
        for k, v in enumerate(table[i][len(large) :]):
            C[k][j] = Fraction(int(v.p), int(v.q))
    return C

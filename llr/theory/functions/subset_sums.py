"""Sums of subsets of given vectors, in exact numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import combinations
from math import comb

from flint import fmpq, fmpq_mat

from llr.theory.structures.structure import Row, rank

# The most sums that are formed, which takes a few seconds; enough for forty vectors.
_SUMS = 1 << 22


def reachable(
    target: Row, further: Sequence[Row], vectors: Sequence[Row], free: int
) -> bool | None:
    """Whether `target` is a sum of some of the vectors, where `free` of them may have any real coefficient.

    Args:
        target: the vector to reach.
        further: vectors that are multiplied by numbers independent over the rationals, so that they must be
            combinations of the free vectors alone.
        vectors: of the same length; each has the coefficient 0 or 1, the free ones have any coefficient.
        free: the number of free vectors, which may be any of them.

    Returns:
        The answer, or None where finding it would take too many sums.

    Example:
        >>> from fractions import Fraction as F
        >>> vectors = [(F(1),), (F(3),)]
        >>> [reachable((F(n),), [], vectors, 0) for n in (2, 4)], reachable((F(2),), [], vectors, 1)
        ([False, True], True)
    """
    if not any(target) and not further:
        return True
    whole = rank(vectors)
    if rank([*vectors, target, *further]) > whole:
        return False
    if free >= whole:
        return True
    rest = len(vectors) - free
    if comb(len(vectors), free) * 2 ** (rest - rest // 2 + 1) > _SUMS:
        return None
    for chosen in combinations(range(len(vectors)), free):
        others = [v for i, v in enumerate(vectors) if i not in chosen]
        if is_sum_modulo(target, further, others, [vectors[i] for i in chosen]):
            return True
    return False


def is_sum_modulo(
    target: Row, further: Sequence[Row], vectors: Sequence[Row], generators: Sequence[Row]
) -> bool | None:
    """Whether `target` is a sum of some of the vectors and a linear combination of the generators.

    Args:
        target: the vector to reach.
        further: as for :func:`reachable`: they must be combinations of the generators alone.
        vectors: of the same length; each has the coefficient 0 or 1.
        generators: vectors with any real coefficients.

    Returns:
        The answer, or None where finding it would take too many sums.

    Example:
        >>> from fractions import Fraction as F
        >>> one, both = (F(1), F(0)), (F(1), F(2))
        >>> is_sum_modulo((F(5), F(2)), [], [both], [one]), is_sum_modulo((F(5), F(1)), [], [both], [one])
        (True, False)
    """
    if rank([*generators, *further]) > rank(generators):
        return False
    goal, *others = _modulo([target, *vectors], generators)
    others = [v for v in others if any(v)]
    if not any(goal):
        return True
    if rank([*others, goal]) > rank(others):
        return False
    if 2 ** (len(others) - len(others) // 2 + 1) > _SUMS:
        return None
    return _is_sum(goal, others)


def _modulo(vectors: Sequence[Row], generators: Sequence[Row]) -> list[Row]:
    """The vectors modulo the span of the generators, reduced so that the leading entries are zero."""
    if not generators:
        return list(vectors)
    entries = [fmpq(v.numerator, v.denominator) for row in generators for v in row]
    reduced, size = fmpq_mat(len(generators), len(generators[0]), entries).rref()
    for row in reduced.tolist()[:size]:
        exact = [Fraction(int(v.p), int(v.q)) for v in row]
        at = next(j for j, v in enumerate(exact) if v)
        vectors = [
            tuple(x - v[at] * y for x, y in zip(v, exact, strict=True)) if v[at] else v
            for v in vectors
        ]
    return list(vectors)


def _is_sum(target: Row, vectors: Sequence[Row]) -> bool:
    """Whether some of the vectors sum to the target: compares the sums of one half with the other's."""
    half, size = len(vectors) // 2, len(target)
    found = set(_sums(vectors[:half], size))
    return any(
        tuple(t - x for t, x in zip(target, s, strict=True)) in found
        for s in _sums(vectors[half:], size)
    )


def _sums(vectors: Sequence[Row], size: int) -> Iterable[Row]:
    sums: list[Row] = [(Fraction(0),) * size]
    for v in vectors:
        sums += [tuple(x + y for x, y in zip(s, v, strict=True)) for s in sums]
    return sums

"""Ranks of matrices of integers, and of floating-point numbers taken as exact fractions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flint import fmpq_mat, fmpz, fmpz_mat, nmod_mat

from llr.linalg.deadline import poll

_MOST_BITS = 512  # per integer, so that a rank takes milliseconds


def integer_rows(J: fmpq_mat) -> tuple[fmpz_mat, list[int]]:
    """A matrix of dyadic entries with rows multiplied by powers of two to get integers, and the exponents."""
    integers: list[fmpz] = []
    powers = []
    for row in J.tolist():
        powers.append(max((int(x.q).bit_length() - 1 for x in row), default=0))
        scale = fmpz(2) ** powers[-1]
        integers += [x.p * (scale // x.q) for x in row]
    return fmpz_mat(J.nrows(), J.ncols(), integers), powers


def exact_rank(M: fmpz_mat, below: int = 2**62) -> tuple[int, int]:
    """The rank of an integer matrix, and a prime modulo which it has that rank.

    The rank modulo a prime is never larger. If it is at most r for primes whose product exceeds Hadamard's
    bound on the minors of size r + 1, all these minors are divisible by the product and so are zero.

    Args:
        M: the matrix.
        below: primes below this number are taken, largest first; at most 2^62.
    """
    rows = [sum(int(x) ** 2 for x in row).bit_length() / 2 for row in M.tolist()]
    norms = sorted((norm for norm in rows if norm), reverse=True)  # log2, rounded up
    rank, known = -1, 0.0
    p = prime = below
    while rank < 0 or (rank < min(len(norms), M.ncols()) and known <= sum(norms[: rank + 1])):
        poll()
        p = _prime_below(p)
        found = nmod_mat(M, p).rank()
        if found > rank:
            rank, prime = found, p
        known += math.log2(p) - 1e-9  # below the logarithm even with rounding
    return rank, prime


def rank_at_least(M: fmpz_mat) -> int:
    """A lower bound of the rank of an integer matrix: its rank modulo one large prime."""
    return int(nmod_mat(M, _prime_below(2**62)).rank())


def _prime_below(p: int) -> int:
    p -= 1
    while not fmpz(p).is_prime():
        p -= 1
    return p


def rank_of_floats(rows: Sequence[Sequence[float]]) -> int | None:
    """The rank of a matrix of finite floating-point numbers, each taken as the fraction that it is.

    Returns:
        The rank; None if it would take long, because magnitudes within rows and columns differ too much.

    Example:
        >>> from llr.linalg.integers import rank_of_floats
        >>> rank_of_floats([[0.25, 0.5], [3.0, 6.0]])
        1
        >>> rank_of_floats([[0.1, 0.3], [0.3, 0.9]])  # the nearest fractions of 2^k are not proportional
        2
    """
    lines = [_integers(row) for row in rows]
    columns = [_without_divisor(column) for column in zip(*lines, strict=True)]
    if not columns or max(x.bit_length() for column in columns for x in column) > _MOST_BITS:
        return None if columns else 0
    return exact_rank(fmpz_mat(columns))[0]


def _integers(row: Sequence[float]) -> list[int]:
    """A row multiplied by a power of two to get integers, divided by their common divisor."""
    ratios = [x.as_integer_ratio() for x in row]
    denominator = max((q for _, q in ratios), default=1)
    return _without_divisor([p * (denominator // q) for p, q in ratios])


def _without_divisor(numbers: Sequence[int]) -> list[int]:
    divisor = math.gcd(*numbers) or 1
    return [x // divisor for x in numbers]

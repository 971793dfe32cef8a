"""Finds rows and columns of an exact matrix whose submatrix has the rank of the matrix, and proves it.

The rows and columns are found by elimination with complete pivoting, in approximate arithmetic; only the
proof is rigorous: one determinant in balls that does not contain zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from flint import arb, arb_mat, fmpq_mat, fmpz_mat, nmod_mat

from llr.linalg.arithmetic import BALLS, each
from llr.linalg.balls import Array, precision
from llr.linalg.block_inverse import approximate_solution, determinant_bounds, largest_piece, solved
from llr.linalg.deadline import poll
from llr.linalg.decimals import EXPONENT_BITS
from llr.linalg.integers import exact_rank, integer_rows

Pivots = list[tuple[int, int]]
"""(row, column), in the order of elimination."""

Indices = Sequence[int] | Array

# The smallest ratio of a pivot to the first one in a float64 factorisation: of sixteen digits, nine are safe.
_RANGE = 2.0**-30
# Entries with larger exponents of two are not scaled: sums of them would not be exact.
_MOST_POWER = 2**40


class Scaled:
    """A ball matrix with rows and columns multiplied by powers of two so that its entries are near 1.

    The rank stays the same, and neither tiny outgoing weights nor large inputs cost precision.
    """

    def __init__(self, A: arb_mat, bits: int) -> None:
        """Take a matrix whose balls were computed at this precision."""
        self.bits = bits
        entries = _array(A)
        exponents = _each(_exponent, entries).astype(np.float64)  # -inf for zeros
        columns = _finite(exponents.max(axis=0, initial=-np.inf))
        rows = _finite((exponents - columns).max(axis=1, initial=-np.inf))
        self._columns, self._rows = -columns.astype(np.int64), -rows.astype(np.int64)
        powers = np.add.outer(self._rows, self._columns)
        with precision(bits):
            self.entries: Array = np.empty(entries.shape, dtype=object)
            for i, row in enumerate(powers.tolist()):
                poll()
                self.entries[i] = entries[i] * np.array([arb((1, e)) for e in row], dtype=object)

    def matrix(self, rows: Indices, columns: Indices) -> arb_mat:
        """The scaled matrix at these rows and columns."""
        return _matrix(self.entries[np.ix_(np.asarray(rows, int), np.asarray(columns, int))])

    def determinant_bounds(self, rows: Indices, columns: Indices) -> tuple[arb, arb] | None:
        """Bounds of the absolute value of the determinant of the unscaled matrix at these places.

        Args:
            rows: in the order of elimination, if they are many.
            columns: as many, in that order.

        Returns:
            A lower and an upper bound; None if nothing can be said at this precision. The lower bound is 0 if
            the determinant may be 0, or if it is too large or too small for a certificate.
        """
        power = int(self._rows[list(rows)].sum() + self._columns[list(columns)].sum())
        piece = largest_piece(self.bits)
        with precision(self.bits):
            if len(rows) <= piece:
                poll()
                det = abs(self.matrix(rows, columns).det())
                found = (det.abs_lower(), det.abs_upper()) if det.is_finite() else None
            else:
                found = determinant_bounds(self.block(rows, columns), piece)
            if found is None:
                return None
            low, high = (x * arb((1, -power)) for x in found)
            return (arb(0) if _is_beyond(low) else low), high

    def block(self, rows: Indices, columns: Indices) -> Array:
        """The entries of the scaled matrix at these rows and columns."""
        return cast(Array, self.entries[np.ix_(np.asarray(rows, int), np.asarray(columns, int))])


def _is_beyond(x: arb) -> bool:
    """Whether a positive number is too large or too small for a certificate."""
    man, exp = x.man_exp()
    return bool(man <= 0) or int(exp).bit_length() > EXPONENT_BITS


def _array(A: arb_mat) -> Array:
    return np.array(A.entries(), dtype=object).reshape(A.nrows(), A.ncols())


def _matrix(entries: Array) -> arb_mat:
    m, n = entries.shape
    return arb_mat(m, n, entries.ravel().tolist())


def _middle(entries: Array) -> Array:
    return each(lambda x: x.mid(), entries)


def _each(function: Callable[[Any], Any], entries: Array) -> Array:
    return cast(Array, np.frompyfunc(function, 1, 1)(entries))


def _exponent(x: arb) -> float:
    """Approximately the e with 2^(e-1) <= |x| < 2^e; -inf for a ball that may be zero."""
    if not x.is_finite() or x.contains(0):
        return -np.inf
    man, exp = x.abs_upper().man_exp()
    power = int(man.bit_length() + exp)
    return float(power) if abs(power) <= _MOST_POWER else -np.inf


def _finite(exponents: Array) -> Array:
    return np.where(np.isfinite(exponents), exponents, 0.0)


def find_pivots(A: Scaled, beat: Callable[[], None] = lambda: None) -> Pivots:
    """Rows and columns of a well-conditioned submatrix, the largest that is found at the precision of A.

    Complete pivoting, nine digits at a time: a float64 factorisation chooses pivots from the leading digits
    of the remaining matrix, then these pivots are eliminated together at full precision. This is not
    rigorous.

    Args:
        A: the matrix. An entry smaller than the radii of the balls is not taken as a pivot.
        beat: called after each factorisation.
    """
    pivots: Pivots = []
    with precision(A.bits):
        rows, columns = _narrow_rows(A), np.arange(A.entries.shape[1])
        rest = _middle(A.entries[rows])
        radii = _each(lambda x: x.rad(), A.entries[rows]).ravel().tolist()
        noise = 16 * max([arb((1, -A.bits)), *radii])
        while rest.size:
            peak = max(map(abs, rest.ravel().tolist()))
            if peak <= noise:
                break
            floats = _each(float, rest / peak).astype(np.float64)
            i, j = _complete_pivots(floats, max(_RANGE, float(noise / peak)))
            pivots += zip(rows[i].tolist(), columns[j].tolist(), strict=True)
            beat()
            other_i = np.setdiff1d(np.arange(len(rows)), i)
            other_j = np.setdiff1d(np.arange(len(columns)), j)
            block, right, left, kept = (
                rest[np.ix_(a, b)]
                for a, b in ((i, j), (i, other_j), (other_i, j), (other_i, other_j))
            )
            rows, columns = rows[other_i], columns[other_j]
            if not kept.size:
                break
            try:
                solution = approximate_solution(block, right, largest_piece(A.bits))
            except ZeroDivisionError:  # the precision is too low for these pivots
                break
            rest = _middle(kept - BALLS.product(left, solution))
    return pivots


def _narrow_rows(A: Scaled) -> Array:
    """The rows whose balls are about as narrow as most.

    A ball that contains a kink is wide at every precision. Elimination would spread its radius to other rows.
    """
    radii = [max(x.rad() for x in row) for row in A.entries]
    most = sorted(radii, key=float)[len(radii) // 2]
    limit = max(most * 2**20, arb((1, -A.bits // 2)))
    return np.array([i for i, r in enumerate(radii) if r.is_finite() and r <= limit], dtype=int)


def _complete_pivots(A: Array, smallest: float) -> tuple[Array, Array]:
    """Rows and columns in the order of Gaussian elimination, until pivots fall below `smallest`."""
    A = A.copy()
    rows, columns = np.arange(A.shape[0]), np.arange(A.shape[1])
    k = 0
    while k < min(A.shape):
        rest = A[k:, k:]
        i, j = divmod(int(np.abs(rest).argmax()), rest.shape[1])
        if abs(rest[i, j]) <= smallest:
            break
        A[[k, k + i]], rows[[k, k + i]] = A[[k + i, k]], rows[[k + i, k]]
        A[:, [k, k + j]], columns[[k, k + j]] = A[:, [k + j, k]], columns[[k + j, k]]
        A[k + 1 :, k + 1 :] -= np.outer(A[k + 1 :, k] / A[k, k], A[k, k + 1 :])
        k += 1
    return rows[:k], columns[:k]


def prove(A: Scaled, pivots: Pivots, *, search: bool = True) -> tuple[int, arb]:
    """The number of leading pivots that are proved independent, and a lower bound of their determinant.

    The proof is a determinant in balls that does not contain zero. If the determinant for all pivots contains
    zero, the largest number with a proof is found by bisection.

    Args:
        A: the matrix.
        pivots: in the order of elimination.
        search: whether to look for a smaller number if there is no proof for all pivots.

    Returns:
        r, and an exact positive lower bound of the absolute value of the determinant of the first r rows and
        columns, unscaled.
    """
    proved, bound = 0, arb(1)
    high = k = len(pivots)
    while k > proved:
        found = A.determinant_bounds(*zip(*pivots[:k], strict=True))
        if found is not None and found[0] > 0:
            proved, bound = k, found[0]
        elif not search:
            break
        else:
            high = k - 1
        k = (proved + high + 1) // 2
    return proved, bound


def remainder(A: Scaled, pivots: Pivots) -> arb | None:
    """A bound of the entries that remain in the scaled matrix after eliminating proved pivots.

    Returns:
        An upper bound of the absolute values of the remaining entries. None if one of them is certainly not
        zero, or if nothing can be said at this precision.
    """
    rows, columns = ([p[side] for p in pivots] for side in (0, 1))
    other_rows, other_columns = (
        np.setdiff1d(np.arange(size), chosen)
        for size, chosen in zip(A.entries.shape, (rows, columns), strict=True)
    )
    with precision(A.bits):
        left = A.block(other_rows, other_columns)
        if pivots:
            chosen, right = A.block(rows, columns), A.block(rows, other_columns)
            X = solved(chosen, right, largest_piece(A.bits))
            if X is None:  # these balls do not exclude a singular matrix
                return None
            left = left - BALLS.product(A.block(other_rows, columns), X)
        entries = left.ravel().tolist()
        if not all(x.is_finite() and x.contains(0) for x in entries):
            return None
        return max((x.abs_upper() for x in entries), default=arb(0))


def rational_pivots(J: fmpq_mat) -> tuple[list[int], list[int], int]:
    """Rows and columns of a largest nonsingular submatrix of a matrix with dyadic entries.

    Returns:
        As many rows and columns as the exact rank, ascending, and an exponent e. The absolute value of their
        determinant is at least 2^e, since it is a nonzero integer after scaling the rows to integers.
    """
    M, powers = integer_rows(J)
    rank, prime = exact_rank(M)
    if rank == 0:
        return [], [], 0
    rows = _leading(nmod_mat(M.transpose(), prime))
    kept = _select(M, rows)
    return rows, _leading(nmod_mat(kept, prime)), -sum(powers[i] for i in rows)


def _leading(M: nmod_mat) -> list[int]:
    """The columns of the leading entries of the reduced row echelon form."""
    reduced, rank = M.rref()
    columns, at = [], 0
    for i in range(rank):
        while int(reduced[i, at]) == 0:
            at += 1
        columns.append(at)
    return columns


def _select(M: fmpz_mat, rows: Sequence[int]) -> fmpz_mat:
    table = M.tolist()
    return fmpz_mat(len(rows), M.ncols(), [x for i in rows for x in table[i]])

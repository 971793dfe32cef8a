"""Approximate inverses in blocks, for proofs about matrices that are too large for one call of C.

python-flint computes a determinant or a solution in one call, during which neither signals nor time limits
are checked. Here a matrix is divided into blocks that take about half a second at most.

The approximate inverse X of A is a product of exact block-triangular factors, so that only the determinants
of small blocks contribute rounding to det X.

If the rows of I - X A have absolute sums of at most e < 1 in balls, then every matrix
in the balls of A is nonsingular, and |det A| |det X| lies between (1 - e)^n and (1 + e)^n, since the
eigenvalues of X A are within e of 1.

Source: S. M. Rump, "Verification methods: rigorous results using floating-point arithmetic", Acta Numerica 19
(2010), section 10.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flint import arb, arb_mat

from llr.linalg.arithmetic import BALLS, each
from llr.linalg.balls import Array
from llr.linalg.deadline import poll


def largest_piece(bits: int) -> int:
    """The most rows that a square matrix may have for one call of C at this precision."""
    # A step of elimination takes about 30 ns at 128 bits, and an n x n matrix takes n^3 / 3 steps. An
    # approximate solution, products and the proof together cost a few eliminations.
    step = 30e-9 * max(1.0, bits / 128) ** 1.4
    return max(4, int((0.5 / step) ** (1 / 3)))


@dataclass(frozen=True)
class _Leaf:
    inverse: Array
    """(n, n), exact numbers."""

    def apply(self, M: Array) -> Array:
        return BALLS.product(self.inverse, M)

    def matrix(self) -> Array:
        return self.inverse

    def determinant(self) -> arb:
        poll()
        return _matrix(self.inverse).det()


@dataclass(frozen=True)
class _Blocks:
    first: Inverse
    """The inverse of the leading block."""
    second: Inverse
    """The inverse of the Schur complement of the leading block."""
    right: Array
    """Approximately the inverse of the leading block times the block to its right; exact numbers."""
    below: Array
    """The block below the leading one; exact numbers."""

    def apply(self, M: Array) -> Array:
        k = len(self.right)
        top = self.first.apply(M[:k])
        bottom = self.second.apply(M[k:] - BALLS.product(self.below, top))
        return np.concatenate((top - BALLS.product(self.right, bottom), bottom))

    def matrix(self) -> Array:
        first, second = self.first.matrix(), self.second.matrix()
        corner = -BALLS.product(second, BALLS.product(self.below, first))
        top = (first - BALLS.product(self.right, corner), -BALLS.product(self.right, second))
        return np.concatenate(
            (np.concatenate(top, axis=1), np.concatenate((corner, second), axis=1))
        )

    def determinant(self) -> arb:
        return self.first.determinant() * self.second.determinant()


Inverse = _Leaf | _Blocks


def inverse(A: Array, piece: int) -> Inverse:
    """An approximate inverse of a matrix, as an exact linear map.

    Args:
        A: (n, n) balls, the rows and columns in an order in which elimination needs no exchanges.
        piece: the largest number of rows of a block.

    Raises:
        ZeroDivisionError: a block is singular at the current precision.
    """
    n = len(A)
    if n <= piece:
        poll()
        X = _matrix(A).mid().solve(_matrix(_unit(n)), algorithm="approx").mid()
        return _Leaf(np.array(X.entries(), dtype=object).reshape(n, n))
    k = n // 2
    first = inverse(A[:k, :k], piece)
    right = _middle(first.apply(_middle(A[:k, k:])))
    below = _middle(A[k:, :k])
    rest = A[k:, k:] - BALLS.product(below, right)
    return _Blocks(first, inverse(_middle(rest), piece), right, below)


def approximate_solution(A: Array, B: Array, piece: int) -> Array:
    """An approximate solution of A Y = B, exact numbers; arguments and errors as for :func:`inverse`."""
    if len(A) <= piece:
        poll()
        Y = _matrix(A).solve(_matrix(B), algorithm="approx").mid()
        return np.array(Y.entries(), dtype=object).reshape(B.shape)
    return _middle(inverse(A, piece).apply(B))


def checked_inverse(A: Array, piece: int) -> tuple[Inverse, arb] | None:
    """An approximate inverse and its defect, which is below 1; None if A is not proved nonsingular.

    Arguments as for :func:`inverse`.
    """
    try:
        X = inverse(A, piece)
    except ZeroDivisionError:
        return None
    off = defect(X, A)
    return (X, off) if off < 1 else None


def determinant_bounds(A: Array, piece: int) -> tuple[arb, arb] | None:
    """Positive bounds of the absolute value of the determinant of every matrix in the balls of A.

    Returns:
        A lower and an upper bound; None if the matrix is not proved nonsingular. Arguments as for
        :func:`inverse`.
    """
    n = len(A)
    found = checked_inverse(A, piece)
    if found is None:
        return None
    X, off = found
    size = abs(X.determinant())
    if not (size > 0 and size.is_finite()):
        return None
    return ((1 - off) ** n / size).lower(), ((1 + off) ** n / size).upper()


def defect(X: Inverse, A: Array) -> arb:
    """An upper bound of the sums of absolute values of the rows of I - X A."""
    # Form X as a matrix first: applying its blocks one after the other would lose cancellation.
    left = each(abs, _unit(len(A)) - BALLS.product(X.matrix(), A))
    sums = [sum(row, arb(0)).upper() for row in left]
    return max(sums, default=arb(0)) if all(s.is_finite() for s in sums) else arb("inf")


def solved(A: Array, B: Array, piece: int) -> Array | None:
    """The solution of A Y = B in balls; None if A is not proved nonsingular.

    Arguments as for :func:`inverse`.
    """
    found = checked_inverse(A, piece)
    if found is None:
        return None
    X, off = found
    Y = _middle(X.apply(B))
    rest = each(abs, X.apply(B - BALLS.product(A, Y)))
    radii = [max((x.upper() for x in column), default=arb(0)) / (1 - off) for column in rest.T]
    return Y + np.array([[arb(0, r.upper()) for r in radii]] * len(Y), dtype=object).reshape(
        Y.shape
    )


def _unit(n: int) -> Array:
    found = np.full((n, n), arb(0), dtype=object)
    found[np.arange(n), np.arange(n)] = arb(1)
    return found


def _middle(M: Array) -> Array:
    return each(lambda x: x.mid(), M)


def _matrix(M: Array) -> arb_mat:
    return arb_mat(len(M), M.shape[1], M.ravel().tolist())

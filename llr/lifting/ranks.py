"""Bounds of the rank of a matrix of tangent functions: the lower one is proved on samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flint import arb, arb_mat

from llr.linalg.decimals import decimal_below
from llr.linalg.elimination import Pivots, Scaled, find_pivots, prove, remainder
from llr.results import Record

# If the rank has not grown at this precision, and the remaining pivots shrink like zeros, it will not grow.
_ENOUGH_BITS = 256


@dataclass(frozen=True, repr=False)
class RankBounds(Record):
    """The dimension of a span of tangent functions, between bounds that are both certain.

    Attributes:
        lower: the rank of the matrix on the samples is at least this.
        upper: the dimension of the span is at most this.
        rows: the rows of a nonsingular submatrix of size `lower`; rows of the matrix are numbered sample by
            sample, output by output.
        columns: the columns of the submatrix.
        determinant: a positive lower bound of the absolute value of its determinant.
        bits: precision at which this was proved.
    """

    lower: int
    upper: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    determinant: str
    bits: int

    _order = ("lower <= upper",)
    _also = ("exact",)

    @property
    def exact(self) -> bool:
        """Whether both bounds are equal."""
        return self.lower == self.upper

    def __str__(self) -> str:
        """The number, or the bounds."""
        return str(self.lower) if self.exact else f"{self.lower} to {self.upper}"

    def _rules(self) -> Iterator[tuple[bool, str]]:
        sizes = len(self.rows), len(self.columns)
        yield sizes == (self.lower, self.lower), "as many rows and columns as lower"


def rank_bounds(
    matrix: Callable[[int], arb_mat], upper: int, *, bits: int, max_bits: int
) -> RankBounds:
    """Prove a lower bound of the rank of a matrix, at growing precision, up to an upper bound.

    Args:
        matrix: returns the matrix in balls, evaluated at a given precision.
        upper: an upper bound of its rank.
        bits: the first precision; it is doubled.
        max_bits: the last precision.

    Raises:
        RuntimeError: the rank is larger than `upper`.

    Example:
        >>> from flint import arb_mat
        >>> from llr.lifting.ranks import rank_bounds
        >>> print(rank_bounds(lambda bits: arb_mat([[1, 2], [3, 4]]), 2, bits=64, max_bits=64))
        2
    """
    best, bound, at = Pivots(), arb(1), bits
    left: arb | None = None
    while True:
        A = Scaled(matrix(bits), bits)
        pivots = find_pivots(A)
        proved, found = prove(A, pivots)
        grown = proved > len(best)
        if grown:
            best, bound, at = pivots[:proved], found, bits
        if proved > upper:
            raise RuntimeError(
                f"the rank is at least {proved}, which is certain, but the theory says at most {upper}: this "
                "is a mistake in llr, please report it with both models"
            )
        if len(best) == upper or bits >= max_bits:
            break
        before, left = left, remainder(A, best)
        small = arb(0) if before is None else before * arb((1, -bits // 4))
        if not grown and bits >= _ENOUGH_BITS and left is not None and left <= small:
            break
        bits = min(2 * bits, max_bits)
    return RankBounds(
        lower=len(best),
        upper=upper,
        rows=tuple(sorted(row for row, _ in best)),
        columns=tuple(sorted(column for _, column in best)),
        determinant=decimal_below(bound),
        bits=at,
    )

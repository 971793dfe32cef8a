"""Matrix factorization and deep linear networks."""

from __future__ import annotations

from itertools import accumulate

from flint import fmpq, fmpq_mat

from llr.linalg.integers import exact_rank
from llr.theory.result import Dimension, Term
from llr.theory.structures.structure import Factorization, LinearNet, Matrix, rank


def factorization_tangent(net: Factorization) -> Dimension:
    """dim T of A B at any factors.

    Source: docs/theory.md, Theorem 4.1.

    Example:
        >>> from llr.models import MatrixFactorization
        >>> from llr.theory import read_structure
        >>> print(factorization_tangent(read_structure(MatrixFactorization(4, 1, 5))))
        dim T = 8 of 9 parameters (Theorem 4.1)
             +4  Y B: 4 rows, rank of B 1
             +5  A X: 5 columns, rank of A 1
             -1  both: (columns of A) times (rows of B)
    """
    m, n = len(net.A), len(net.B[0])
    rank_a, rank_b = rank(net.A), rank(net.B)
    terms = (
        Term(m * rank_b, f"Y B: {m} rows, rank of B {rank_b}"),
        Term(n * rank_a, f"A X: {n} columns, rank of A {rank_a}"),
        Term(-rank_a * rank_b, "both: (columns of A) times (rows of B)"),
    )
    return exactly("dim T", terms, "Theorem 4.1", net.n_params)


def linear_tangent(net: LinearNet) -> Dimension:
    """dim T of W_L ... W_1 at any weights.

    Source: docs/theory.md, Theorem 5.1.

    Example:
        >>> from llr.models import DeepLinear
        >>> from llr.theory import read_structure
        >>> print(linear_tangent(read_structure(DeepLinear([4, 2, 5, 3]))))
        dim T = 10 of 33 parameters (Theorem 5.1)
             +8  W_1: rank 2 above it, 4 below
             +2  W_2: rank 3 above it, 1 more than before; 2 below
             +0  W_3: rank 3 above it, 0 more than before; 2 below
    """
    above, below = surrounding_ranks(net)
    terms = []
    for layer, (p, q) in enumerate(zip(above, below, strict=True), 1):
        before = above[layer - 2] if layer > 1 else 0
        more = f", {p - before} more than before; " if layer > 1 else ", "
        terms.append(Term((p - before) * q, f"W_{layer}: rank {p} above it{more}{q} below"))
    return exactly("dim T", tuple(terms), "Theorem 5.1", net.n_params)


def surrounding_ranks(net: LinearNet) -> tuple[list[int], list[int]]:
    """For each layer the rank of the product of later layers, and of the product of earlier layers."""
    above = [net.widths[-1], *map(product_rank, _products_from_above(net.weights)[:-1])][::-1]
    below = [net.widths[0], *map(product_rank, _products_from_below(net.weights)[:-1])]
    return above, below


def matrix_rank_cost(rows: int, columns: int, r: int) -> tuple[Term, ...]:
    """The dimension of the set of matrices of rank r: the model rank of such a matrix as a product."""
    size = r * (rows + columns - r)
    return (
        Term(size, f"a matrix of rank {r}, {rows} x {columns}: {r} ({rows} + {columns} - {r})"),
    )


def linear_map(net: LinearNet) -> fmpq_mat:
    """W_L ... W_1."""
    return [*_products_from_below(net.weights)][-1]


def exactly(what: str, terms: tuple[Term, ...], statement: str, n_params: int) -> Dimension:
    """The sum of these terms, as an exact dimension."""
    size = sum(t.dimension for t in terms)
    return Dimension(what, size, size, "exact", terms, statement, n_params)


def product_rank(product: fmpq_mat) -> int:
    """The rank of an exact matrix, exactly."""
    return exact_rank(product.numer_denom()[0])[0]


def rational(M: Matrix) -> fmpq_mat:
    """The matrix as ``fmpq_mat``."""
    entries = [fmpq(v.numerator, v.denominator) for row in M for v in row]
    return fmpq_mat(len(M), len(M[0]), entries)


def _products_from_above(weights: tuple[Matrix, ...]) -> list[fmpq_mat]:
    """W_L ... W_(l+1), for l from L - 1 down to 0."""
    return [*accumulate(map(rational, reversed(weights)), lambda above, W: above * W)]


def _products_from_below(weights: tuple[Matrix, ...]) -> list[fmpq_mat]:
    """W_l ... W_1, for l from 1 to L."""
    return [*accumulate(map(rational, weights), lambda below, W: W * below)]

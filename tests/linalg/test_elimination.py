"""Pivots, their proofs and exact ranks, for matrices built with a known rank."""

from __future__ import annotations

import pytest
from flint import arb, arb_mat, fmpq, fmpq_mat, fmpz_mat, nmod_mat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llr.linalg.balls import precision
from llr.linalg.block_inverse import determinant_bounds, solved
from llr.linalg.elimination import Scaled, find_pivots, prove, rational_pivots, remainder
from llr.linalg.integers import exact_rank, integer_rows
from llr.ranks.certificates.verification import _nonsingular


def integers(m: int, n: int, r: int, seed: int, size: int = 9) -> fmpz_mat:
    """A product of (m, r) and (r, n) matrices of small integers."""
    state = seed + 1

    def draw() -> int:
        nonlocal state
        state = state * 6364136223846793005 % 2**64
        return (state >> 33) % (2 * size + 1) - size

    left = fmpz_mat(m, r, [draw() for _ in range(m * r)])
    return left * fmpz_mat(r, n, [draw() for _ in range(r * n)])


SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 8), st.integers(0, 10**9))


@pytest.fixture(params=["whole", "in blocks"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs the test with different sizes of the blocks that one call processes."""
    if request.param == "in blocks":
        monkeypatch.setattr("llr.linalg.elimination.largest_piece", lambda _: 2)
        return 2
    return 1000


FIXTURES = settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.usefixtures("pieces")
class TestBalls:
    @FIXTURES
    @given(SIZES, st.sampled_from([0.0, 1e-60, 1e-25]))
    def test_the_exact_rank_is_found_and_never_exceeded(
        self, size: tuple[int, int, int, int], radius: float
    ) -> None:
        M = integers(*size)
        truth = M.rank()
        with precision(256):
            balls = arb_mat(M.nrows(), M.ncols(), [arb(v) + arb(0, radius) for v in M.entries()])
            A = Scaled(balls, 256)
        pivots = find_pivots(A)
        proved, bound = prove(A, pivots)
        assert proved == truth
        rows, columns = ([p[side] for p in pivots[:proved]] for side in (0, 1))
        table = M.tolist()
        minor = fmpz_mat(proved, proved, [table[i][j] for i in rows for j in columns])
        with precision(300):
            assert 0 < bound <= abs(arb(minor.det())) * (1 + arb((1, -80)))
        left = remainder(A, pivots[:proved])
        assert left is not None
        assert left <= 1e-15

    @FIXTURES
    @given(SIZES)
    def test_singular_matrices_are_not_proved(
        self, pieces: int, size: tuple[int, int, int, int]
    ) -> None:
        n, _, r, seed = size
        M = integers(n, n, min(r, n - 1), seed)
        with precision(64):
            A = Scaled(arb_mat(M), 64)
            everything = [(i, i) for i in range(n)]
            assert prove(A, everything)[0] < n
            assert not _nonsingular(A.block(range(n), range(n)), pieces)

    def test_balls_that_hold_a_singular_matrix(self) -> None:
        wide, narrow = (arb_mat(2, 2, [arb(1, r), 1, 1, 1.05]) for r in (0.1, 0.01))
        for piece in (1, 2):
            assert not _nonsingular(Scaled(wide, 64).entries, piece)
            assert _nonsingular(Scaled(narrow, 64).entries, piece)
        assert prove(Scaled(wide, 64), [(0, 0), (1, 1)])[0] == 1

    def test_graded_far_beyond_float64(self) -> None:
        # After scaling of rows and columns, this is the matrix [[1, 1], [1, 2]] and another block.
        with precision(64):
            A = arb_mat(
                3, 3, [arb((1, -6000)), 1, 0, arb((1, 1)), arb((1, 6002)), 0, 0, 0, arb((3, -9000))]
            )
            assert prove(Scaled(A, 64), find_pivots(Scaled(A, 64)))[0] == 3

    def test_infinite_entries_are_left_out(self) -> None:
        A = arb_mat(3, 2, [1, 0, arb("nan"), 1, arb("+/- inf"), 1])
        scaled = Scaled(A, 64)
        assert find_pivots(scaled) == [(0, 0)]
        assert remainder(scaled, [(0, 0)]) is None
        assert prove(scaled, [(0, 0), (1, 1)])[0] == 1

    def test_remainder_shows_that_rank_is_missing(self) -> None:
        A = Scaled(arb_mat(2, 2, [1, 1, 1, 2]), 64)
        assert remainder(A, [(0, 0)]) is None
        assert remainder(A, [(0, 0), (1, 1)]) == 0
        assert remainder(A, []) is None


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**9), st.integers(1, 9), st.sampled_from([0.0, 1e-30]))
def test_determinants_in_blocks_enclose_the_exact_one(
    n: int, seed: int, piece: int, radius: float
) -> None:
    M = integers(n, n, n, seed)
    with precision(200):
        A = Scaled(arb_mat(n, n, [arb(v) + arb(0, radius) for v in M.entries()]), 200)
        order = find_pivots(A)
        if len(order) < n:
            assert M.det() == 0
            return
        rows, columns = ([p[side] for p in order] for side in (0, 1))
        block = A.block(rows, columns)
        found = determinant_bounds(block, piece)
        assert found is not None
        exact = abs(arb_mat(n, n, [v.mid() for v in block.ravel()]).det())
        assert found[0] <= exact.upper()
        assert exact.lower() <= found[1]
        assert found[1] <= found[0] * (1 + arb((1, -60)))
        Y = solved(block, block[:, :1], piece)
        assert Y is not None
        assert all(y.contains(int(i == 0)) and y.rad() < 1e-20 for i, y in enumerate(Y.ravel()))


class TestIntegers:
    @settings(max_examples=60, derandomize=True, deadline=None)
    @given(SIZES, st.sampled_from([9, 2**40]))
    def test_rank(self, size: tuple[int, int, int, int], entries: int) -> None:
        M = integers(*size, size=entries)
        rank, prime = exact_rank(M)
        assert rank == M.rank()
        assert nmod_mat(M, prime).rank() == rank

    @pytest.mark.parametrize("size", [1, 2**200])
    def test_a_prime_that_hides_the_rank(self, size: int) -> None:
        prime = 2**61 - 1  # the first one below 2^61
        M = fmpz_mat(2, 2, [prime, 0, 0, prime * size])
        assert nmod_mat(M, prime).rank() == 0
        rank, other = exact_rank(M, below=2**61)
        assert (rank, other != prime) == (2, True)

    @settings(max_examples=40, derandomize=True, deadline=None)
    @given(SIZES, st.integers(0, 60))
    def test_pivots_of_dyadic_matrices(self, size: tuple[int, int, int, int], power: int) -> None:
        M = integers(*size)
        J = fmpq_mat(M) * fmpq(1, 2**power)
        rows, columns, exponent = rational_pivots(J)
        assert len(rows) == len(columns) == M.rank()
        table = J.tolist()
        minor = fmpq_mat(len(rows), len(rows), [table[i][j] for i in rows for j in columns])
        assert abs(minor.det()) >= fmpq(2) ** exponent if rows else exponent == 0

    def test_scaling_to_integers(self) -> None:
        J = fmpq_mat(2, 2, [fmpq(1, 2), fmpq(3, 8), 5, 7])
        assert integer_rows(J) == (fmpz_mat(2, 2, [4, 3, 5, 7]), [3, 0])

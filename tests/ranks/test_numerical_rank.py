"""Numerical ranks compared with known ranks, exact elimination and fractions; what counts as a gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from flint import fmpz_mat
from hypothesis import given, settings
from hypothesis import strategies as st
from linalg.test_spectrum import DTYPES, low_rank

import llr
from llr.linalg.integers import rank_of_floats


def by_fractions(rows: Sequence[Sequence[float]]) -> int:
    """The rank by Gauss elimination in Python's fractions."""
    rest, rank = [[Fraction(x) for x in row] for row in rows], 0
    for j in range(len(rest[0]) if rest else 0):
        pivot = next((i for i in range(rank, len(rest)) if rest[i][j]), None)
        if pivot is None:
            continue
        rest[rank], rest[pivot] = rest[pivot], rest[rank]
        for i in range(rank + 1, len(rest)):
            factor = rest[i][j] / rest[rank][j]
            rest[i] = [a - factor * b for a, b in zip(rest[i], rest[rank], strict=True)]
        rank += 1
    return rank


class TestNumericalRank:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        ("m", "n", "r"),
        [(5, 5, 3), (8, 3, 2), (3, 8, 1), (30, 40, 17), (442, 100, 60), (6, 40_000, 4)],
    )
    def test_known_rank(self, m: int, n: int, r: int, dtype: torch.dtype) -> None:
        result = llr.numerical_rank(low_rank(m, n, r, dtype=dtype))
        assert result.rank == r
        # Only exact arithmetic shows whether values below the error are zero; it is for small matrices.
        small = m * n <= 1024
        assert (result.clear, result.ambiguous, result.lower) == (True, not small, r)
        assert result.upper == r if small else r < result.upper <= min(m, n)
        assert (result.n_rows, result.n_params) == (m, n)
        assert result.method == "svd"
        assert result.dtype == dtype
        assert result.path is None

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_agrees_with_exact_rank(self, data: st.DataObject) -> None:
        m, n, k = (data.draw(st.integers(1, 7)) for _ in range(3))
        entries = st.integers(-4, 4)
        left = np.array(data.draw(st.lists(entries, min_size=m * k, max_size=m * k))).reshape(m, k)
        right = np.array(data.draw(st.lists(entries, min_size=k * n, max_size=k * n))).reshape(k, n)
        A = left @ right
        exact = fmpz_mat(A.tolist()).rank()
        assert llr.numerical_rank(torch.from_numpy(A.astype(float))).rank == exact

    @settings(max_examples=60, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
        exponent=st.floats(-150, 150),
        sign=st.sampled_from([-1, 1]),
    )
    def test_invariances(
        self, seed: int, shape: tuple[int, int], exponent: float, sign: int
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        m, n = shape
        r = int(torch.randint(1, min(m, n) + 1, (), generator=g))
        A = low_rank(m, n, r, seed)
        rows, columns = torch.randperm(m, generator=g), torch.randperm(n, generator=g)
        assert llr.numerical_rank(A).rank == r
        assert llr.numerical_rank(A[rows][:, columns]).rank == r
        assert llr.numerical_rank(A.T).rank == r
        assert llr.numerical_rank(A * (sign * 10.0**exponent)).rank == r
        assert llr.numerical_rank(torch.cat((A, A))).rank == r

    def test_hilbert_matrix_is_ambiguous(self) -> None:
        # Nonsingular, but its singular values fall through any tolerance without a gap.
        i = torch.arange(1, 21, dtype=torch.float64)
        result = llr.numerical_rank(1 / (i[:, None] + i - 1))
        assert result.rank < 20
        assert result.ambiguous
        assert result.gap < 1e3

    @pytest.mark.parametrize("shape", [(3, 4), (0, 4), (4, 0), (0, 0)])
    def test_zero_and_empty(self, shape: tuple[int, ...]) -> None:
        for atol in (None, 1.0):
            result = llr.numerical_rank(torch.zeros(shape), atol=atol)
            assert result.rank == 0
            assert result.gap == math.inf
            assert result.ambiguous is False

    def test_types_of_one_matrix(self) -> None:
        result = llr.numerical_rank(torch.eye(3))
        assert [type(v) for v in (result.rank, result.tol, result.gap, result.ambiguous)] == [
            int,
            float,
            float,
            bool,
        ]

    def test_a_batch_is_a_loop(self) -> None:
        A = torch.stack(
            [torch.stack([low_rank(9, 30, r, seed=s) for r in (1, 4, 9)]) for s in (0, 1)]
        )
        A[1, 2] = 0
        result = llr.numerical_rank(A, rtol=1e-10)
        assert result.spectrum.shape == (2, 3, 9)
        for index in np.ndindex(2, 3):
            one = llr.numerical_rank(A[index], rtol=1e-10)
            assert result.rank[index] == one.rank
            assert result.tol[index].item() == pytest.approx(one.tol, rel=1e-14)
            assert result.ambiguous[index] == one.ambiguous
        assert result.rank.tolist() == [[1, 4, 9], [1, 4, 0]]
        assert not result.ambiguous.any()

    def test_a_batch_is_a_loop_with_bounds(self) -> None:
        """Each matrix of a batch gets the same bounds as alone."""
        repeated = low_rank(20, 30, 9)
        repeated[10:] = repeated[3]
        zeros = low_rank(20, 30, 9)
        zeros[:, 4:] = 0
        full, empty = torch.eye(20, 30).double(), torch.zeros(20, 30).double()
        A = torch.stack([low_rank(20, 30, 9), repeated, zeros, full, empty]).reshape(5, 1, 20, 30)
        for some in (A, A.float(), A[:1], A[[1, 2]], A[:0]):
            result = llr.numerical_rank(some)
            alone = [llr.numerical_rank(one[0]) for one in some]
            for name in ("rank", "lower", "upper", "ambiguous"):
                expected = [getattr(one, name) for one in alone]
                assert getattr(result, name).tolist() == [[v] for v in expected], name
            assert result.exact == all(one.exact for one in alone)
        assert llr.numerical_rank(A).upper_from == "shape or different rows"
        assert llr.numerical_rank(A[[1, 2]]).upper_from == "different rows"

    def test_small_batches_are_eliminated(self) -> None:
        A = torch.stack([low_rank(4, 5, r) for r in (0, 1, 2, 3, 4)])
        result = llr.numerical_rank(A)
        assert result.rank.tolist() == result.upper.tolist() == [0, 1, 2, 3, 4]
        assert result.exact
        assert "exact elimination" in result.upper_from


class TestElimination:
    """Exact elimination confirms an uncertain count, but does not replace it."""

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_rank_of_floats(self, data: st.DataObject) -> None:
        m, n = (data.draw(st.integers(0, 5)) for _ in range(2))
        entries = st.one_of(
            st.integers(-3, 3).map(float),
            st.floats(allow_nan=False, allow_infinity=False, width=32),
            st.sampled_from([0.1, 0.2, 0.3, 1e-300, 3e300, -0.0, 5e-324]),
        )
        rows = [data.draw(st.lists(entries, min_size=n, max_size=n)) for _ in range(m)]
        if m > 2:
            rows[2] = [4 * x if abs(x) < 1e300 else x for x in rows[0]]
        found = rank_of_floats(rows)
        assert found is None or found == by_fractions(rows)
        if all(abs(x) < 1e9 and (x == 0 or abs(x) > 1e-9) for row in rows for x in row):
            assert found is not None

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_what_it_confirms_is_exact(self, dtype: torch.dtype) -> None:
        for rows in ([[1, 2], [3, 6]], [[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[1, 1e-30], [2, 2e-30]]):
            A = torch.tensor(rows, dtype=dtype)
            A[-1] = 3 * A[0] if len(A) == 2 else A[-1]
            result = llr.numerical_rank(A)
            assert (result.rank, result.exact) == (by_fractions(A.tolist()), True)
            assert result.upper_from == "exact elimination"
            assert (result.lower_from, result.ambiguous) == ("error bound", False)

    def test_entries_of_all_sizes(self) -> None:
        """Scale factors are in range, also for zeros beside the smallest and the largest numbers."""
        sizes = [0.0, 1.0, 5e-324, 1e-310, 1e-160, 1e160, 1e300, 1.7e307]
        g = torch.Generator().manual_seed(0)
        for _ in range(300):
            A = torch.tensor(sizes, dtype=torch.float64)[torch.randint(8, (2, 3), generator=g)]
            result = llr.numerical_rank(A)
            true = by_fractions(A.tolist())
            assert result.lower <= true <= result.upper
            assert result.ambiguous or result.rank == true

    def test_what_was_rounded_keeps_its_count(self) -> None:
        g = torch.Generator().manual_seed(1)
        A = torch.randn(6, 2, generator=g) @ torch.randn(2, 5, generator=g)
        exact = by_fractions(A.tolist())
        result = llr.numerical_rank(A)
        assert exact > 2
        assert (result.rank, result.lower, result.ambiguous, result.exact) == (2, 2, True, False)
        assert result.upper == exact
        assert f"entries have rank {exact}, by exact elimination" in str(result)

    def test_tolerances_ask_another_question(self) -> None:
        A = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        assert llr.numerical_rank(A, rtol=1e-3).upper_from == "shape"


class TestGap:
    def test_between_values(self) -> None:
        A = torch.diag(torch.tensor([4.0, 1.0, 2e-18]).double())
        result = llr.numerical_rank(A, rtol=1e-15)
        assert result.rank == 2
        assert result.gap == pytest.approx(5e17)

    def test_what_drowns_counts_as_its_error(self) -> None:
        A = torch.ones(3, 3).double() + torch.diag(torch.tensor([4.0, 1.0, 0.0]).double())
        A[2] = A[0] - 3 * A[1]  # rank 2, which no single row or column shows
        A = torch.block_diag(*[A] * 6)  # too large for exact elimination
        result = llr.numerical_rank(A)
        assert (result.rank, result.clear, result.ambiguous) == (12, True, True)
        assert 1e10 < result.gap < 1e17

    def test_exact_zero_below(self) -> None:
        result = llr.numerical_rank(torch.diag(torch.tensor([4.0, 1.0, 0.0])))
        assert (result.rank, result.exact, result.upper_from) == (2, True, "different rows")
        assert result.gap == 1 / result.tol

    def test_full_rank_is_measured_against_the_tolerance(self) -> None:
        result = llr.numerical_rank(torch.diag(torch.tensor([4.0, 1.0])), rtol=1e-2)
        assert result.gap == pytest.approx(25)
        assert result.ambiguous
        assert llr.numerical_rank(torch.eye(2), rtol=0.0).gap == math.inf

    def test_rank_0_by_atol(self) -> None:
        A = torch.diag(torch.tensor([0.5, 0.25]))
        assert llr.numerical_rank(A, atol=1.0).rank == 0
        assert llr.numerical_rank(A, atol=1.0).gap == 2
        assert llr.numerical_rank(A, atol=1.0).ambiguous
        assert not llr.numerical_rank(A, atol=1e4).ambiguous

    @pytest.mark.parametrize(("ratio", "ambiguous"), [(999.0, True), (1001.0, False)])
    def test_ambiguous_below_1000(self, ratio: float, ambiguous: bool) -> None:
        A = torch.diag(torch.tensor([1.0, 1e-6 / ratio])).double()
        assert llr.numerical_rank(A * 1e3, atol=2e-6 / ratio * 1e3).gap == pytest.approx(
            1e6 * ratio
        )
        A = torch.diag(torch.tensor([ratio, 1.0])).double()
        result = llr.numerical_rank(A, atol=2.0)
        assert (result.rank, result.ambiguous) == (1, ambiguous)

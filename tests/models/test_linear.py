"""Matrix factorizations and deep linear networks: exact ranks, known from theorems."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from ranks.test_rank import F64
from torch import Tensor, nn

import llr
from llr import certify
from llr.exact import network as exact
from llr.models import (
    DeepLinear,
    MatrixFactorization,
)

from .cases import generator, whole

pytestmark = pytest.mark.filterwarnings("ignore:llr runs without its native library:RuntimeWarning")


class TestFactorizations:
    # m, p, n, rank of the product: dim T, and with A of full rank and B padded with zeros.
    @pytest.mark.parametrize(
        ("m", "p", "n", "r", "narrow", "full"),
        [(4, 5, 5, 1, 8, 20), (4, 5, 5, 2, 14, 20), (5, 8, 5, 3, 21, 25)],
    )
    def test_ranks(self, m: int, p: int, n: int, r: int, narrow: int, full: int) -> None:
        A, B = torch.zeros(m, p, dtype=F64), torch.zeros(p, n, dtype=F64)
        A[:, :r], B[:r] = whole(m, r), whole(r, n, seed=1)
        model = MatrixFactorization.of(A, B)
        assert certify(model, model.pairs()).rank == narrow == r * (m + n - r)
        assert llr.model_rank(model).rank == narrow
        A[:, r:] = whole(m, p - r, seed=2)
        wide = MatrixFactorization.of(A, B)
        assert torch.equal(wide(wide.pairs()), model(model.pairs()))
        assert certify(wide, wide.pairs()).rank == full

    def test_exact_jacobian_by_hand(self) -> None:
        A, B = whole(3, 2) / 8, whole(2, 4, seed=1) / 4
        model = MatrixFactorization.of(A, B)
        pairs = model.pairs()
        J = exact.rational_jacobian(model, pairs)
        for row, (i, j) in enumerate(pairs.tolist()):
            expected = torch.cat((torch.zeros(3, 2), torch.zeros(4, 2))).double()
            expected[i], expected[3 + j] = B[:, j], A[i]
            dA, dB = expected[:3], expected[3:].T
            found = [Fraction(int(v.p), int(v.q)) for v in J.table()[row]]
            assert found == [Fraction(v) for v in [*dA.flatten().tolist(), *dB.flatten().tolist()]]

    def test_observed_entries(self) -> None:
        # Rank 1: entries have the guarantee iff their bipartite graph is connected and spans all.
        model = MatrixFactorization.of(whole(3, 1) + 0.5, whole(1, 4, seed=1) + 0.5)
        spanning = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [2, 0]])
        verdict = llr.has_llr_guarantee(model, spanning)
        assert (verdict.holds, verdict.proved, verdict.rank) == (True, True, 6)
        cycle = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 2], [2, 3]])
        assert llr.has_llr_guarantee(model, cycle).rank == 3 + 2
        assert llr.llr_sample_size(model, torch.cat((cycle, spanning))) == 9

    def test_samples(self) -> None:
        model = MatrixFactorization(2, 1, 3)
        assert model.pairs().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
        found = llr.model_rank(model, seed=3)
        assert found.sampler == "all index pairs in the order of seed 3"
        assert found.exact
        assert llr.model_rank(model, sampler=model.pairs()).rank == found.rank == 4
        assert llr.rank(model, model.pairs(), method="certified").certificate.n_rows == 6

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: MatrixFactorization(2, 0, 2), ValueError, "p is 0"),
            (
                lambda: MatrixFactorization.of(torch.ones(2, 3), torch.ones(2, 2)),
                ValueError,
                r"B has shape \(2, 2\); expected \(3, 2\), one row for each column of A",
            ),
            (
                lambda: MatrixFactorization(2, 1, 2)(torch.ones(1, 2)),
                TypeError,
                r"index pairs are torch.float32; expected integers",
            ),
            (
                lambda: MatrixFactorization(2, 1, 2)(torch.ones(1, 3).long()),
                ValueError,
                r"index pairs have shape \(1, 3\); expected \(N, 2\)",
            ),
            (
                lambda: certify(MatrixFactorization(2, 1, 2), torch.ones(1, 2)),
                ValueError,
                "x is torch.float64 of shape .* expected index pairs",
            ),
            (
                lambda: certify(MatrixFactorization(2, 1, 2), torch.tensor([[0, 1], [0, 2]])),
                ValueError,
                r"index pair 1 is \(0, 2\); expected rows below 2, columns below 2",
            ),
            (
                lambda: certify(nn.Sequential(MatrixFactorization(2, 1, 2)), torch.ones(1, 2)),
                ValueError,
                "MatrixFactorization '0' takes index pairs",
            ),
        ],
    )
    def test_bad_input(
        self, call: Callable[[], object], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            call()


class TestLinearNets:
    def test_of(self) -> None:
        weights = whole(4, 3), whole(2, 4, seed=1)
        model = DeepLinear.of(*weights)
        x = whole(5, 3, seed=2)
        assert torch.equal(model(x), x @ weights[0].T @ weights[1].T)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=F64)

    @pytest.mark.parametrize(
        ("widths", "zeros", "expected"),
        [
            ((3, 4, 2), (), 6),
            ((4, 2, 5, 3), (), 10),
            ((3, 3, 3, 3), (1,), 9),
            ((3, 3, 3, 3), (0, 1), 0),
            ((3, 3, 3), (0, 1), 0),
        ],
    )
    def test_ranks(self, widths: tuple[int, ...], zeros: tuple[int, ...], expected: int) -> None:
        model = DeepLinear(widths, dtype=F64, generator=generator())
        with torch.no_grad():
            for layer in zeros:
                model[layer].weight.zero_()
        x = torch.eye(widths[0], dtype=F64)
        assert certify(model, x).rank == expected
        assert certify(model, x).arithmetic == "rationals"

    def test_an_inner_matrix_of_rank_one(self) -> None:
        model = DeepLinear.of(whole(3, 2), torch.outer(whole(3), whole(3, seed=1)), whole(2, 3))
        assert certify(model, torch.eye(2, dtype=F64)).rank == 4

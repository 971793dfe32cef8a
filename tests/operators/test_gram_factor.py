"""The operator that factors a Gram matrix. Needs torch, numpy and pytest only; one test needs python-flint's
exact singular values too."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from helpers.oracles import as_integers, assert_matches, normal, on_grid
from torch import Tensor
from torch.library import opcheck

from llr.operators import _ops

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

F64 = torch.float64
EPS = 2.0**-52


def gram(J: Tensor, bits: int = 60) -> Tensor:
    """J J' in double-double, rounded once."""
    whole = as_integers(J, bits)
    exact = [Fraction(v, 4**bits) for v in (whole @ whole.T).flat]
    high = [float(v) for v in exact]
    low = [float(v - Fraction(h)) for v, h in zip(exact, high, strict=True)]
    return torch.tensor([high, low], dtype=F64).view(2, len(J), len(J))


def exact_values(J: Tensor) -> Tensor:
    flint = pytest.importorskip("flint")
    before, flint.ctx.prec = flint.ctx.prec, 400
    M = flint.arb_mat(J.tolist())
    squares = flint.acb_mat(M * M.transpose()).eig(algorithm="approx")
    values = [float(max(x.real.mid(), flint.arb(0)).sqrt()) for x in squares]
    flint.ctx.prec = before
    return torch.tensor(sorted(values, reverse=True), dtype=F64)


def ill_conditioned(n: int, columns: int, smallest: float) -> Tensor:
    left, right = torch.linalg.qr(normal(n, n)).Q, torch.linalg.qr(normal(columns, n, seed=1)).Q
    return on_grid(left * torch.logspace(0, math.log10(smallest), n, dtype=F64) @ right.T)


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 3), (5, 9), (20, 33), (65, 70)])
def test_factor_keeps_small_singular_values(n, columns):
    J = ill_conditioned(n, columns, 1e-12)
    K, exact = gram(J), exact_values(J)
    L = _ops.gram_factor(K)
    assert L.shape == (n, n)
    allowed = 10 * n * EPS * exact[0]
    assert (torch.linalg.svdvals(L) - exact).abs().max() <= allowed
    assert_matches(L @ L.T, K[0], 1e-14)
    if n > 1:  # in one double, the smallest value is lost
        plain = torch.linalg.eigvalsh(K[0]).abs().sqrt().min()
        assert (plain - exact[-1]).abs() > 100 * allowed


@pytest.mark.parametrize(("n", "r"), [(1, 1), (4, 1), (7, 3), (30, 29), (66, 40), (130, 64)])
def test_rank_of_integers(n, r):
    generator = torch.Generator().manual_seed(n + r)
    parts = [torch.randint(-9, 10, s, generator=generator).double() for s in [(n, r), (r, n + 20)]]
    J = parts[0] @ parts[1]
    L = _ops.gram_factor(gram(J, 0))
    assert L.shape == (n, r)
    assert_matches(L @ L.T, J @ J.T, 1e-14)
    assert _ops.gram_factor(gram(J[torch.randperm(n)], 0)).shape == (n, r)
    for power in (-150, 7, 150):
        assert torch.equal(_ops.gram_factor(gram(J, 0) * 4.0**power), L * 2.0**power)


def test_factors_of_a_batch():
    low_rank, zero = on_grid(normal(9, 3) @ normal(3, 12, seed=1)), torch.zeros(9, 12)
    matrices = [normal(9, 12), low_rank, zero, ill_conditioned(9, 12, 1e-9)]
    K = torch.stack([gram(on_grid(J)) for J in matrices], 1)
    L = _ops.gram_factor(K)
    assert L.shape == (4, 9, 9)
    for i in range(4):
        alone = _ops.gram_factor(K[:, i])
        assert torch.equal(L[i, :, : alone.shape[1]], alone)
        assert (L[i, :, alone.shape[1] :] == 0).all()
    assert torch.equal(_ops.gram_factor(K.mT.contiguous().mT), L)
    for n, batch in itertools.product([0, 1, 2, 65], ([], [3], [0])):
        assert _ops.gram_factor(torch.zeros(2, *batch, n, n, dtype=F64)).shape == (*batch, n, 0)


def test_what_is_not_finite_is_no_low_rank():
    """The result is a refusal or an L that is not finite, not a finite factor with fewer columns."""
    for entry, bad in itertools.product([(0, 0), (1, 1), (2, 0)], [math.nan, math.inf]):
        K = torch.stack([torch.eye(3, dtype=F64), torch.zeros(3, 3, dtype=F64)])
        K[0][entry] = K[0][entry[::-1]] = bad
        try:
            L = _ops.gram_factor(K)
        except RuntimeError:
            continue
        assert not torch.isfinite(L).all(), f"rank {L.shape[1]} with {bad} at {entry}"


def test_matrices_without_a_factor(device):
    for shape in [(3, 3), (3, 3, 3), (2, 3, 4), (2, 2, 2, 3, 3)]:
        with pytest.raises(
            RuntimeError, match=r"K has shape \[.*\]; expected \(2, N, N\) or \(2, B"
        ):
            _ops.gram_factor(torch.zeros(shape, dtype=F64, device=device))
    with pytest.raises(RuntimeError, match="K is Float; expected float64"):
        _ops.gram_factor(torch.zeros(2, 3, 3, device=device))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("batched", [False, True])
def test_opcheck_of_the_factor(batched):
    J = on_grid(normal(4, 2) @ normal(2, 5, seed=1))
    K = torch.stack([gram(J), gram(J)], 1) if batched else gram(J)
    opcheck(torch.ops.llr.gram_factor.default, (K,))

"""Double-double arithmetic, native and in torch: exact if documented so, otherwise accurate to 106 bits."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import mpmath
import pytest
import torch
from helpers.models import F64
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llr.operators import _ops, double_double
from llr.operators.double_double import DoubleDouble, two_product, two_sum

native = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)
IMPLEMENTATIONS = [
    pytest.param(double_double, id="torch"),
    pytest.param(_ops, id="native", marks=native),
]
moderate = st.floats(-1e100, 1e100).filter(lambda v: v == 0 or abs(v) > 1e-100)


def exact(t: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in t.flatten().tolist()]


def values(pair: Tensor | DoubleDouble) -> list[Fraction]:
    return [h + low for h, low in zip(exact(pair[0]), exact(pair[1]), strict=True)]


def scalar(v: float) -> Tensor:
    return torch.tensor(v, dtype=F64)


# --- numbers -----------------------------------------------------------------------------------------


@given(moderate, moderate)
def test_sums_and_products_of_two_numbers_are_exact(a, b):
    assert values(two_sum(scalar(a), scalar(b))) == [Fraction(a) + Fraction(b)]
    assert values(two_product(scalar(a), scalar(b))) == [Fraction(a) * Fraction(b)]


@given(*[moderate] * 4)
def test_arithmetic_to_104_bits(a, b, c, d):
    x, y = two_sum(scalar(a), scalar(b * 2.0**-53)), two_sum(scalar(c), scalar(d * 2.0**-53))
    (u,), (v,) = values(x), values(y)
    assert abs(values(x.plus(y))[0] - (u + v)) <= Fraction(2) ** -104 * abs(u + v)
    assert abs(values(x.times(y))[0] - u * v) <= Fraction(2) ** -102 * abs(u * v)
    assert values(x.negative()) == [-u]


# --- sums of products --------------------------------------------------------------------------------


def cancelling(*shape: int) -> Tensor:
    """Entries over 40 binary orders of magnitude; half of them almost cancel their neighbours."""
    t = torch.randn(shape, dtype=F64) * 2.0 ** torch.randint(-20, 21, shape)
    t[..., 1::2] = -t[..., : 2 * (shape[-1] // 2) : 2] * (1 + 1e-14 * torch.randn(1, dtype=F64))
    return t


def exact_gram(
    delta: Tensor, a: Tensor, bias: bool, weight: bool
) -> list[tuple[Fraction, Fraction]]:
    """Every exact entry, and the sum of the absolute values of its terms."""
    N, T = delta.shape[:2]
    d = [[[Fraction(v) for v in row] for row in sample] for sample in delta.tolist()]
    x = [[[Fraction(v) for v in row] for row in sample] for sample in a.tolist()]
    entries = []
    for i in range(N):
        for k in range(N):
            total = size = Fraction(0)
            for t in range(T):
                for s in range(T):
                    dd = [p * r for p, r in zip(d[i][t], d[k][s], strict=True)]
                    aa = [p * r for p, r in zip(x[i][t], x[k][s], strict=True)] if weight else []
                    aa += [Fraction(bias)]
                    total += sum(dd) * sum(aa)
                    size += sum(map(abs, dd)) * sum(map(abs, aa))
            entries.append((total, size))
    return entries


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("bias", "weight"), [(False, True), (True, True), (True, False), (False, False)]
)
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1), (4, 1, 6, 8), (3, 3, 4, 2), (2, 2, 1, 5), (3, 1, 1, 40)]
)
def test_gram_to_106_bits(implementation, sizes, bias, weight):
    N, T, h, w = sizes
    delta, a = cancelling(N, T, h), cancelling(N, T, w)
    expected = exact_gram(delta, a, bias, weight)
    K = torch.zeros(2, N, N, dtype=F64)
    implementation.gram_add_(K, delta, a, bias, weight)
    plain = torch.zeros(N, N, dtype=F64)
    implementation.gram_add_(plain, delta, a, bias, weight)
    terms = h + w + T * T
    for found, rounded, (value, size) in zip(values(K), exact(plain), expected, strict=True):
        assert abs(found - value) <= terms * Fraction(2) ** -103 * size
        assert abs(rounded - value) <= terms * Fraction(2) ** -51 * size


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gram_adds_to_what_is_there(implementation):
    first, second = torch.randn(2, 5, 1, 7, dtype=F64)
    ones = torch.ones(5, 1, 1, dtype=F64)
    K = torch.zeros(2, 5, 5, dtype=F64)
    implementation.gram_add_(K, ones, first)
    implementation.gram_add_(K, ones, second)
    together = torch.cat([first, second], 2)
    for found, (value, size) in zip(
        values(K), exact_gram(ones, together, False, True), strict=True
    ):
        assert abs(found - value) <= 20 * Fraction(2) ** -104 * size
    assert torch.equal(K, K.mT), "symmetric in every bit"


# --- the factor --------------------------------------------------------------------------------------


def with_spectrum(rows: int, columns: int, spectrum: Tensor) -> Tensor:
    U = torch.linalg.qr(torch.randn(rows, rows, dtype=F64)).Q
    V = torch.linalg.qr(torch.randn(columns, columns, dtype=F64)).Q
    return (U[:, : len(spectrum)] * spectrum) @ V[: len(spectrum)]


def to_60_digits(A: Tensor) -> list[mpmath.mpf]:
    """Singular values, largest first, of the exact matrix."""
    with mpmath.workdps(60):
        return sorted(mpmath.svd_r(mpmath.matrix(A.tolist()), compute_uv=False), reverse=True)


def low_rank() -> Tensor:
    """A matrix with exact rank 5: a product of small integers."""
    left, right = torch.randint(-99, 100, (12, 5)), torch.randint(-99, 100, (5, 14))
    return (left @ right).to(F64)


MATRICES: dict[str, Callable[[], Tensor]] = {
    "random": lambda: torch.randn(12, 20, dtype=F64),
    "tall": lambda: torch.randn(12, 7, dtype=F64),
    "graded to 1e-15": lambda: with_spectrum(12, 12, torch.logspace(0, -15, 12, dtype=F64)),
    "a small one": lambda: with_spectrum(12, 15, torch.tensor([1.0] * 11 + [1e-12], dtype=F64)),
    "clustered": lambda: with_spectrum(12, 12, torch.tensor([2.0] * 6 + [1e-9] * 6, dtype=F64)),
    "rows of all sizes": lambda: (
        torch.randn(12, 20, dtype=F64) * torch.logspace(0, -30, 12, dtype=F64)[:, None]
    ),
    "rank 5": low_rank,
    "repeated rows": lambda: torch.randn(4, 9, dtype=F64).repeat(3, 1),
    "one row": lambda: torch.randn(1, 9, dtype=F64),
    "large": lambda: 1e60 * torch.randn(6, 9, dtype=F64),
    "small": lambda: 1e-60 * torch.randn(6, 9, dtype=F64),
    "zero": lambda: torch.zeros(4, 9, dtype=F64),
}


def gram_of(A: Tensor) -> Tensor:
    K = torch.zeros(2, len(A), len(A), dtype=F64)
    double_double.gram_add_(K, torch.ones(len(A), 1, 1, dtype=F64), A[:, None])
    return K


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", list(MATRICES))
def test_the_factor_has_the_singular_values(implementation, case):
    A = MATRICES[case]()
    expected = to_60_digits(A)
    L = implementation.gram_factor(gram_of(A))
    N = len(A)
    assert L.shape[0] == N
    assert L.shape[1] <= min(A.shape)
    found = torch.linalg.svdvals(L).tolist()
    found += [0.0] * (len(expected) - len(found))
    for value, true in zip(found, expected, strict=True):
        assert abs(value - true) <= 10 * N * 2.0**-52 * expected[0]
    assert (L @ L.T - A @ A.T).abs().max() <= 1e-14 * (A @ A.T).abs().max()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("case", "rank"), [("rank 5", 5), ("repeated rows", 4), ("zero", 0), ("tall", 7)]
)
def test_as_many_columns_as_the_rank(implementation, case, rank):
    assert implementation.gram_factor(gram_of(MATRICES[case]())).shape[1] == rank


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_digits_that_a_float64_gram_matrix_has_not(implementation):
    A = with_spectrum(12, 15, torch.logspace(0, -12, 12, dtype=F64))
    expected = float(to_60_digits(A)[-1])
    K = gram_of(A)
    smallest = float(torch.linalg.svdvals(implementation.gram_factor(K))[-1])
    assert abs(smallest - expected) <= 1e-3 * expected
    from_float64 = abs(float(torch.linalg.eigvalsh(A @ A.T)[0])) ** 0.5
    assert abs(from_float64 - expected) > 100 * expected


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_factors_of_a_batch(implementation):
    matrices = [MATRICES[case]() for case in ("random", "rank 5", "graded to 1e-15")]
    grams = [gram_of(A) for A in matrices]
    together = implementation.gram_factor(torch.stack(grams, 1))
    assert together.shape == (3, 12, 12)
    for L, K in zip(together, grams, strict=True):
        alone = implementation.gram_factor(K)
        assert torch.equal(L[:, : alone.shape[1]], alone)
        assert not L[:, alone.shape[1] :].any()
    assert implementation.gram_factor(torch.zeros(2, 0, 3, 3, dtype=F64)).shape == (0, 3, 0)
    assert implementation.gram_factor(torch.zeros(2, 0, 0, dtype=F64)).shape == (0, 0)


@native
@pytest.mark.parametrize("case", list(MATRICES))
def test_native_and_torch_agree(case):
    K = gram_of(MATRICES[case]())
    L, M = double_double.gram_factor(K), _ops.gram_factor(K)
    common = min(
        L.shape[1], M.shape[1]
    )  # a pivot near the noise may count for one and not for the other
    scale = float(L.abs().max()) if L.numel() else 0.0
    assert L.shape[1] - common + M.shape[1] - common <= 1
    assert (L[:, :common] - M[:, :common]).abs().max() <= 1e-14 * scale if common else True

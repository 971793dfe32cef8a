"""The operator for singular values. Needs torch, numpy, pytest and hypothesis only; tests that compare with
exact values also need python-flint, and are skipped without it."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from helpers.oracles import run_python
from helpers.targets import Target
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.library import opcheck

from llr.operators import _ops

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

F64, F32 = torch.float64, torch.float32
EPS = 2.0**-52
SVDVals = Callable[..., Tensor]
both_dtypes = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
# LAPACK's dbdsqr drops off-diagonal entries of up to this many eps; the operator's own iteration does not.
LAPACK_ITSELF = 100


on_cpu = torch.ops.llr.svdvals if _ops.NATIVE else None


@pytest.fixture(scope="session")
def svdvals(target: Target) -> SVDVals:
    """The operator on a device, for matrices and values on the CPU."""

    def compute(A: Tensor, **options: int) -> Tensor:
        values = target.op.svdvals(A.to(target.device), **options)
        assert values.device.type == target.device
        return values.cpu()

    return compute


def among_copies(svdvals: SVDVals, A: Tensor) -> Tensor:
    """The values of a matrix in a batch of copies: up to 128 columns are computed without LAPACK."""
    return svdvals(torch.stack([A, A, A]))[1]


def exact_values(A: Tensor, bits: int = 300) -> Tensor:
    """Square roots of the eigenvalues of A'A, computed with this many bits and rounded."""
    flint = pytest.importorskip("flint")
    before, flint.ctx.prec = flint.ctx.prec, bits
    M = flint.arb_mat((A if A.shape[0] >= A.shape[1] else A.T).double().tolist())
    squares = flint.acb_mat(M.transpose() * M).eig(algorithm="approx")
    values = [float(max(x.real.mid(), flint.arb(0)).sqrt()) for x in squares]
    flint.ctx.prec = before
    return torch.tensor(sorted(values, reverse=True), dtype=F64)


def distance(values: Tensor, expected: Tensor) -> float:
    """Largest error in eps * sigma_1; infinite if there is a NaN."""
    assert values.shape == expected.shape
    largest = expected[..., :1]
    errors = (values.double() - expected).abs() / torch.where(largest > 0, EPS * largest, 5e-324)
    return float(errors.nan_to_num(math.inf).max()) if errors.numel() else 0.0


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed), dtype=F64)


def uniform(*shape: int, low: float, high: float, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.manual_seed(seed), dtype=F64) * (high - low) + low


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-9, 10, shape, generator=torch.manual_seed(seed)).double()


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


def with_spectrum(*values: float) -> Tensor:
    return orthogonal(len(values)) * torch.tensor(values, dtype=F64) @ orthogonal(len(values), 1)


def bidiagonal(d: Tensor, e: Tensor) -> Tensor:
    return torch.diag_embed(d) + torch.diag_embed(e, 1)


def awkward(n: int) -> Iterator[tuple[str, Tensor]]:
    i, one = torch.arange(n, dtype=F64), torch.ones(n, dtype=F64)
    for m in (n, n + 1, 2 * n, 130):
        yield f"normal {m}", normal(m, n)
    yield "graded columns", normal(n, n) * 10 ** uniform(n, low=-300, high=300)
    yield "graded upwards", normal(n, n) * 10 ** (12 * (i + i[:, None]) / n)
    yield "clustered", with_spectrum(*(1 + 1e-8 * k for k in range(n)))
    yield "tightly clustered", with_spectrum(*(1 + 1e-15 * k for k in range(n)))
    yield "two clusters", with_spectrum(*[1.0] * (n // 2), *[1e-10] * (n - n // 2))
    yield "geometric", with_spectrum(*(10 ** (-20 * k / n) for k in range(n)))
    yield "repeated", torch.kron(torch.eye(n // 2 + 1, dtype=F64), normal(2, 2))[:n, :n]
    yield "low rank", integers(n, 2) @ integers(2, n + 3, seed=1)
    yield "zero", torch.zeros(n + 1, n, dtype=F64)
    yield "ones", torch.ones(n, n, dtype=F64)
    yield "bidiagonal of ones", bidiagonal(one, one[1:])
    yield "nilpotent", bidiagonal(0 * one, one[1:])
    yield "Kahan", torch.eye(n, dtype=F64) - torch.ones(n, n, dtype=F64).triu(1)
    yield "Hilbert", 1 / (1 + i + i[:, None])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 16, 24, 25, 45])
def test_values_to_a_few_roundings(n, svdvals):
    for name, A in awkward(n):
        values = among_copies(svdvals, A)
        # On 2000 random matrices and these, the error was at most 1.6 sqrt(n); 10 n is promised.
        assert distance(values, exact_values(A)) <= 4 * n**0.5, name
        assert torch.equal(values, values.abs().sort(descending=True).values), name


@pytest.mark.parametrize(("m", "n"), [(4096, 3), (20_001, 5), (700, 30), (100_000, 1)])
def test_values_of_long_matrices(m, n, svdvals):
    rank = (n + 1) // 2
    A = integers(m, rank) @ integers(rank, n, seed=1)  # a low rank shows the errors from long sums
    exact = exact_values(A)
    for view in (A, A.T):
        assert distance(among_copies(svdvals, view), exact) <= 4 * n**0.5
        assert distance(svdvals(view), exact) <= 4 * n**0.5 + (LAPACK_ITSELF if n > 24 else 0)
    assert int((among_copies(svdvals, A) > EPS * n * exact[0]).sum()) == rank
    rounded = svdvals(A.float())
    assert torch.equal(rounded, svdvals(A).float())  # computed in float64
    assert distance(rounded, exact) <= 0.5 * 2.0**29


@pytest.mark.parametrize("n", [4, 12, 24, 40, 128])
def test_rank_where_the_gap_is_wide(n, svdvals):
    for r in (1, n // 2, n - 1):
        exact = integers(n + 5, r) @ integers(r, n, seed=1)
        noise = EPS / 1e3 * svdvals(exact)[0] * torch.eye(n + 5, n, dtype=F64)
        for A in (exact, exact + noise):
            values = among_copies(svdvals, A)
            assert int((values > n * EPS * values[0]).sum()) == r
        diagonal = torch.cat([uniform(r, low=1e-9, high=1), uniform(n - r, low=0, high=1e-20)])
        assert torch.equal(
            among_copies(svdvals, diagonal.diag()), diagonal.sort(descending=True).values
        )


def stress(n: int, count: int) -> Iterator[tuple[str, Tensor]]:
    seeds = itertools.count(n)

    def power(*shape: int, low: float = -20.0, high: float = 0.0) -> Tensor:
        return 10 ** uniform(*shape, low=low, high=high, seed=next(seeds))

    def one_of(values: list[float], *shape: int) -> Tensor:
        chosen = torch.randint(len(values), shape, generator=torch.manual_seed(next(seeds)))
        return torch.tensor(values, dtype=F64)[chosen]

    yield "steps", bidiagonal(one_of([1, 1 + 1e-8, 1e-8, 1e-16], count, n), power(count, n - 1))
    yield "close", bidiagonal(one_of([1, 1 + 1e-8, 1 - 1e-8], count, n), power(count, n - 1))
    yield "up", bidiagonal(power(count, n, low=-16).sort().values, power(count, n - 1))
    yield "some zero", bidiagonal(one_of([0, 1, 2], count, n), one_of([0, 1, 1e-8], count, n - 1))
    yield "dense upwards", normal(count, n, n) * power(count, n, 1, low=-10).sort(-2).values


@pytest.mark.parametrize(
    ("n", "count"), [(3, 300), (5, 300), (9, 99), (20, 60), (40, 20), (128, 3)]
)
def test_no_matrix_resists(n, count, svdvals):
    for name, A in stress(n, count):
        values, expected = svdvals(A), torch.linalg.svdvals(A)
        assert torch.equal(values, values.abs().sort(descending=True).values), name
        assert distance(values, expected) <= 10 * n + LAPACK_ITSELF, name
        if n <= 9:
            exact = torch.stack([exact_values(a) for a in A[:30]])
            assert distance(values[:30], exact) <= 10 * n, name


def clusters(n: int) -> Iterator[tuple[str, Tensor]]:
    """Singular values that differ only in their last digits, for which rounding makes shifts fail."""
    off, one = 10 ** uniform(200, n - 1, low=-16, high=-13), torch.ones(200, n, dtype=F64)
    yield "ones", bidiagonal(one, off)
    yield "one number", bidiagonal(one, off[:, :1].expand(-1, n - 1))
    yield "few eps", bidiagonal(1 + 4 * EPS * uniform(200, n, low=0, high=2, seed=1).floor(), off)
    other = torch.where(torch.arange(n) % 2 == 0, 1.0, uniform(200, 1, low=0.2, high=0.5, seed=1))
    yield "two clusters", bidiagonal(other, off[:, :1].sqrt().expand(-1, n - 1))


@pytest.mark.parametrize("n", [3, 4, 5, 6, 8, 16])
def test_clusters_need_no_fallback(n):
    slow, errors = {}, {}
    for name, A in clusters(n):
        values, exact = on_cpu(A), torch.stack([exact_values(a, 200) for a in A[:40]])
        errors[name] = distance(values[:40], exact)
        # The same bits, unless 30 sweeps per value are too few and LAPACK computes the values.
        slow[name] = int((values != on_cpu(A, sweeps=1000)).any(-1).sum())
    assert max(errors.values()) <= 10 * n, errors
    assert max(slow.values()) == 0, slow


@both_dtypes
@pytest.mark.parametrize("n", [*range(1, 11), 23, 24, 25, 26, 127, 128, 129, 130])
def test_every_shape(n, dtype, svdvals, target):
    block = min(max(4 * n, 64), 256)
    borders = [n + 1, 8 * n // 5, 64, 128, 129, 256, 512, 513, 2 * block, 2 * block + 1, 3 * block]
    for m in sorted({m for m in borders if m > n} | {n, 8 * n // 5 + 1}):
        for count in (1, 3) if n > 24 else (5,):
            if target.name == "emulated" and count * m > n and count * m * n * n > 1_000_000:
                continue  # would take seconds
            A = normal(count, m, n).to(dtype)
            values = svdvals(A)
            assert values.dtype == dtype
            allowed = 10 * n if dtype == F64 else 2.0**29
            assert distance(values, torch.linalg.svdvals(A.double())) <= allowed, (m, count)
            if m != n:
                assert torch.equal(svdvals(A.mT), values), m


@pytest.mark.parametrize(("m", "n"), [(30, 1), (30, 2), (200, 5), (30, 24), (200, 30)])
def test_every_batch(m, n, svdvals):
    A = normal(40, m, n)
    expected = torch.from_numpy(np.linalg.svd(A.numpy(), compute_uv=False))
    for count in (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 40):
        assert distance(svdvals(A[:count]), expected[:count]) <= 10 * n, count
    nested = A.view(2, 5, 1, 4, m, n).transpose(0, 3)
    assert torch.equal(svdvals(nested).transpose(0, 3).reshape(40, n), svdvals(A))


def test_nothing(svdvals):
    for shape in [(0, 0), (0, 4), (4, 0), (3, 0, 4), (0, 3, 4), (2**30, 2**30, 0, 3)]:
        assert svdvals(torch.empty(shape)).shape == (*shape[:-2], min(shape[-2:]))


def misaligned(A: Tensor) -> Tensor:
    memory = bytearray(b"-" + A.numpy().tobytes())
    return torch.frombuffer(memory, dtype=A.dtype, offset=1).view(A.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "columns first": lambda A: A.mT.contiguous().mT,
    "batch last": lambda A: A.movedim(0, -1).contiguous().movedim(-1, 0),
    "strided": lambda A: A.repeat_interleave(2, 0).repeat_interleave(3, 1)[::2, ::3],
    "between two numbers": misaligned,
    "rows apart": lambda A: torch.nn.functional.pad(A, (1, 2), value=math.nan)[..., 1:-2],
    "lazily negated": lambda A: torch.complex(A * 0, -A).conj().imag,
}


@both_dtypes
@pytest.mark.parametrize("shape", [(9, 7, 4), (4, 3, 300), (3, 40, 27), (1, 40, 27), (2, 130, 140)])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_layouts(layout, shape, dtype, svdvals, target):
    if layout is misaligned and target.device != "cpu":
        pytest.skip("torch makes no such tensor of a GPU's memory")
    target.spare(math.prod(shape) * min(shape[1:]))
    A = normal(*shape).to(target.device, dtype)
    view = layout(A)
    assert torch.equal(view, A)
    assert torch.equal(svdvals(view), svdvals(A))
    for expanded in (A[:1].expand(shape), A[:, :1].expand(shape), A[..., :1].expand(shape)):
        assert torch.equal(svdvals(expanded), svdvals(expanded.contiguous()))
    assert torch.equal(view, A)  # only read


NEIGHBOURS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "NaN": lambda A: A * math.nan,
    "infinite": lambda A: A * math.inf,
    "tiny": lambda A: A * 1e-300,
    "slow": lambda A: torch.eye(*A.shape[-2:], dtype=F64) + 1e-14 * A,
    "graded": lambda A: A * 10 ** torch.linspace(-20, 20, A.shape[-1], dtype=F64),
}


@pytest.mark.parametrize("others", NEIGHBOURS.values(), ids=list(NEIGHBOURS))
@pytest.mark.parametrize(("m", "n"), [(3, 3), (4, 10), (24, 24), (600, 5), (60, 25), (130, 64)])
def test_neighbours(m, n, others, svdvals, target):
    target.spare(19 * m * n * min(m, n))
    A = normal(19, m, n)
    alone = svdvals(A) if n > 24 else torch.stack([svdvals(a) for a in A])
    for kept in ([0], [7, 8], [18], [3, 15, 16]):
        crowd = others(A)
        crowd[kept] = A[kept]
        assert torch.equal(svdvals(crowd)[kept], alone[kept]), kept
    for order in (range(19), torch.randperm(19).tolist(), range(4, 12)):
        assert torch.equal(svdvals(A[order]), alone[order])


@both_dtypes
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 3), (5, 600), (40, 30), (130, 129)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite(m, n, bad, dtype, svdvals, target):
    target.spare(4 * m * n * min(m, n))
    A = normal(4, m, n).to(dtype)
    expected = svdvals(A)
    for position in [(0, 0), (m - 1, n - 1), (m // 2, 0)]:
        spoiled = A.clone()
        spoiled[2][position] = bad
        values = svdvals(spoiled)
        assert values[2].isnan().all()
        assert torch.equal(values[[0, 1, 3]], expected[[0, 1, 3]])
    assert svdvals(A * bad).isnan().all()


@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 3), (20, 20), (3, 400), (64, 50), (140, 130)])
def test_invariances(m, n, svdvals, target):
    target.spare(3 * m * n * min(m, n))
    A = normal(3, m, n)
    k, values = min(m, n), svdvals(A)
    assert torch.equal(svdvals(-A), values)
    for B, power in itertools.product([A, A.float()], (-960, -500, -100, -1, 3, 60, 500, 1010)):
        if B.dtype == F64 or abs(power) <= 100:
            assert torch.equal(svdvals(B * 2.0**power), svdvals(B) * 2.0**power), power
    for other in (A.mT, A[:, torch.randperm(m)][..., torch.randperm(n)]):
        assert distance(svdvals(other), values) <= 10 * k
    assert distance(svdvals(orthogonal(m) @ A @ orthogonal(n, 1)), values) <= 10 * k
    assert distance(svdvals(torch.cat([A, A], 1))[:, :k], 2**0.5 * values) <= 20 * k
    assert distance(svdvals(torch.cat([A, 0 * A], 2))[:, :k], values) <= 10 * k
    whole, least, most = integers(3, m, n), 2.0**-1074, torch.finfo(F64).max
    assert (svdvals(whole * least) / least - svdvals(whole)).abs().max() <= 0.5 + 1e-9
    assert (svdvals(most * torch.eye(m, n, dtype=F64).expand(3, m, n)) == most).all()


SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)


@settings(max_examples=150, deadline=None)
@given(A=hnp.arrays(np.int64, SHAPES, elements=st.integers(-6, 6) | st.sampled_from([0, 1, 1000])))
def test_integers(A, svdvals):
    flint = pytest.importorskip("flint")
    m, n = A.shape
    values, exact = svdvals(torch.from_numpy(A).double()), flint.fmpz_mat(A.tolist())
    square = int((A * A).sum())
    assert math.isclose(float((values**2).sum()), square, rel_tol=1e-13)
    # The product of the nonzero values is at least 1, so none is below 1 / (product of the others).
    rank = int((values > 1e-13 * max(square, 1) ** 0.5).sum())
    assert rank <= exact.rank()
    if square ** min(m, n) < 1e20:
        assert rank == exact.rank()
    if m == n:
        error = abs(float(values.prod()) - abs(int(exact.det())))
        assert error <= 1e-13 * max(square ** (n / 2), 1)


THREAD_SHAPES = [(1, 5000, 3), (50, 300, 7), (33, 24, 24), (7, 60, 40), (1, 300, 100)]
THREAD_SHAPES += [(2, 128, 2000), (3, 200, 128), (40, 17, 17)]


def digest() -> str:
    found = hashlib.sha256()
    for shape, dtype in itertools.product(THREAD_SHAPES, (F64, F32)):
        found.update(on_cpu(normal(*shape).to(dtype)).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.usefixtures("threads")
def test_bits_do_not_depend_on_threads():
    torch.set_num_threads(1)
    expected = digest()
    for count in (2, 3, 5):
        torch.set_num_threads(count)
        assert digest() == expected, f"{count} threads"
    code = "from operators.test_svdvals import digest; print(digest())"
    run = run_python(code, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    assert run.stdout.strip() == expected, run.stderr


def test_wide_matrices_first_of_all():
    """Wide matrices as the first work of new threads, in a process that has set its number of threads."""
    code = """
import torch
from operators import test_svdvals as tests
torch.set_num_threads(2)
for shape in [(9, 2000, 130), (3, 5000, 130), (3, 200, 129)]:
    tests.on_cpu(tests.normal(*shape))
"""
    run = run_python(code, timeout=60)  # takes a second, unless there is a deadlock
    assert run.returncode == 0, run.stderr


@both_dtypes
@pytest.mark.parametrize("shape", [(5, 1, 1), (5, 2, 3), (20, 9, 6), (3, 500, 20), (4, 30, 30)])
def test_without_sweeps_lapack_does_it(shape, dtype):
    A = normal(*shape).to(dtype)
    k = min(shape[1:])
    allowed = 10 * k + LAPACK_ITSELF if dtype == F64 else 2.0**29
    assert distance(on_cpu(A, sweeps=0), on_cpu(A.double())) <= allowed
    A[1] = math.nan
    assert on_cpu(A, sweeps=0)[1].isnan().all()
    assert not on_cpu(A, sweeps=0)[0].isnan().any()


def test_bad_arguments(svdvals):
    square = torch.ones(3, 3)
    for A, sweeps, message in [
        (square[0], 30, r"A has shape \[3\]; expected \(\.\.\., m, n\)"),
        (square.half(), 30, "A is Half; expected float32 or float64"),
        (square, -1, "sweeps is -1; expected 0 to 1000"),
        (square, 1001, "sweeps is 1001; expected 0 to 1000"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            svdvals(A, sweeps=sweeps)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_opcheck(target):
    op = target.op.svdvals.default
    for shape in [(3, 3), (2, 5, 3), (0, 4, 3), (2, 3, 0), (1, 2, 30, 27), (3, 200)]:
        A = normal(*shape).to(target.device)
        opcheck(op, (A,))
        opcheck(op, (A.float().mT,), {"sweeps": 3})

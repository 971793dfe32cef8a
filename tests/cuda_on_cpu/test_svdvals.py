"""The kernels of singular values: every layout of matrices in shared memory, in every order of threads.

tests/operators/test_svdvals.py also runs all of the operator's tests on the emulation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import targets
from operators import test_svdvals as tests
from operators.test_svdvals import awkward, clusters, distance, exact_values, normal
from torch import Tensor

from cuda_on_cpu.conftest import MULTIPROCESSORS, ORDERS, PLAIN, SHARED_LIMIT

F64, F32 = torch.float64, torch.float32
AVAILABLE = {
    "A100": 163 * 1024,
    "H100": 227 * 1024,
    "RTX": 99 * 1024,
    "T4": 64 * 1024,
    "little": 20_000,
}
DRIVERS = ["gesvdj", "gesvd", "cpu"]  # in the order in which they are tried


@pytest.fixture
def every_order(emulated: Any) -> Any:
    """The operators in every order of threads, where all drivers of torch.linalg work and none is called."""
    emulated.fail_drivers([], [])
    return emulated


@pytest.fixture
def one_order() -> Iterator[Any]:
    """The same in one random order of threads, for tests that gain nothing from more orders."""
    op = targets.target("emulated").op
    op.emulate(*ORDERS["random"], SHARED_LIMIT, MULTIPROCESSORS)
    op.reset_statistics()
    op.fail_drivers([], [])
    yield op
    op.emulate(*ORDERS["forward"], SHARED_LIMIT, MULTIPROCESSORS)


def by_numpy(A: Tensor) -> Tensor:
    return torch.from_numpy(np.linalg.svd(A.double().numpy(), compute_uv=False))


def scaled(A: Tensor, power: int) -> Tensor:
    """A times 2^power, which may be below the range of doubles."""
    return A * 2.0 ** (power // 2) * 2.0 ** (power - power // 2)


def rounds(m: int, n: int) -> int:
    """How many times pieces of the rows are replaced by their R."""
    piece, count = 256 if n < 64 else 4 * n, 0
    while m > piece:
        m, count = -(-m // piece) * n, count + 1
    return count


WIDTHS = [*range(1, 11), 15, 16, 17, 31, 32, 33, 63, 64, 65] + [100, 128, 129] * PLAIN


@pytest.mark.parametrize("n", WIDTHS)
def test_every_layout(n, every_order):
    """A team of 4 to 256 threads per matrix, 16 to 1 matrices per block, rows in one pass and in many."""
    lengths = {n, n + 1, 8 * n // 5 + 1, 256, 257} if n < 17 else {n, n + n // 4 + 9}
    for m, count in itertools.product(
        sorted(m for m in lengths if m >= n), (1, 17) if n < 17 else (2,)
    ):
        A = normal(count, m, n, seed=m) if n < 64 else normal(m, n, seed=m)
        assert distance(every_order.svdvals(A), by_numpy(A)) <= 10 * n, (m, count)
        assert every_order.drivers_asked() == []


@pytest.mark.parametrize(
    ("m", "n", "expected"),
    [(257, 1, 1), (70_000, 1, 2), (6000, 3, 1), (30_000, 3, 2), (3000, 12, 1), (700, 30, 1)]
    + ([(6000, 12, 2), (2100, 64, 2), (811, 100, 1)] if PLAIN else []),
)
def test_long_matrices(m, n, expected, every_order):
    assert rounds(m, n) == expected
    rank = (n + 1) // 2
    A = tests.integers(m, rank) @ tests.integers(rank, n, seed=1)
    exact = exact_values(A) if n < 20 else by_numpy(A)
    for view in (A, A.T, A.T.contiguous(), A.float()):
        every_order.reset_statistics()
        values = every_order.svdvals(view)
        allowed = 4 * n**0.5 if n < 20 else 10 * n
        assert distance(values, exact) <= (allowed if view.dtype == F64 else 0.5 * 2.0**29)
        assert every_order.statistics()[2] == 2 + expected
    assert int((every_order.svdvals(A) > n * tests.EPS * exact[0]).sum()) == rank


@pytest.mark.parametrize("shape", [(3, 7, 5), (2, 40, 33), (21, 300, 10), (5, 3, 2), (1, 90, 70)])
def test_the_same_bits_in_every_order(shape, one_order):
    A = normal(*shape)
    one_order.emulate(*ORDERS["forward"], SHARED_LIMIT, 108)
    expected = one_order.svdvals(A)
    for seed in range(3):
        one_order.emulate(2, seed, SHARED_LIMIT, 108)
        assert torch.equal(one_order.svdvals(A), expected)
    one_order.emulate(*ORDERS["reverse"], SHARED_LIMIT, 108)
    assert torch.equal(one_order.svdvals(A), expected)


@pytest.mark.parametrize(("count", "launches"), [(1, 1), (20, 1), (21, 2), (41, 3)])
def test_batches_in_several_launches(count, launches, one_order):
    A = normal(41, 300, 10)[:count]
    alone = torch.stack([one_order.svdvals(a) for a in A])
    one_order.reset_statistics()
    assert torch.equal(one_order.svdvals(A), alone)
    vectors, scalars, launched = one_order.statistics()
    assert launched == 3 * launches
    # One allocation each: peaks, two triangles, the values, and whether they were found.
    assert (vectors, scalars) == (0, count * (1 + 2 * 10 * 10 + 10 + 1))


@pytest.mark.parametrize(
    ("device", "square", "tall"),
    [
        ("little", 46, 44),
        *([("T4", 88, 84), ("RTX", 108, 108), ("A100", 140, 140), ("H100", 168, 164)] * PLAIN),
    ],
)
def test_as_wide_as_shared_memory_allows(device, square, tall, one_order):
    one_order.emulate(*ORDERS["random"], AVAILABLE[device], 108)
    for n, more in ((square, 0), (tall, 8), (tall, 4 * tall)):
        for width, driver in ((n, []), (n + 1, ["gesvdj"])):
            one_order.fail_drivers([], [])
            A = normal(width + more, width)
            assert distance(one_order.svdvals(A), by_numpy(A)) <= 10 * n
            assert one_order.drivers_asked() == driver, A.shape


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 16, 33])
def test_few_sweeps_are_enough(n, one_order):
    families = dict(awkward(n))
    if 3 <= n <= 16:
        families |= {f"clusters: {name}": A[:40] for name, A in clusters(n)}
    for name, A in families.items():
        values = one_order.svdvals(A, sweeps=16)
        assert one_order.drivers_asked() == [], name
        assert torch.equal(values, one_order.svdvals(A, sweeps=1000)), name
        first, exact = values.reshape(-1, n)[0], exact_values(A.reshape(-1, *A.shape[-2:])[0])
        assert distance(first, exact) <= 4 * n**0.5, name


def spoiled(A: Tensor) -> Tensor:
    """The second matrix is not finite, the fourth is zero, and the fifth and sixth are extreme."""
    A[1, -1, 0], A[3] = math.nan, 0
    A[4] *= 1e300
    A[5] *= 1e-300
    return A


@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 2), (7, 7), (300, 6), (40, 33), (50, 47)])
@pytest.mark.parametrize("sweeps", [0, 100])
def test_neighbours_do_not_matter(m, n, sweeps, one_order):
    one_order.emulate(*ORDERS["random"], AVAILABLE["little"], 108)
    A = spoiled(normal(17, m, n))
    values = one_order.svdvals(A, sweeps=sweeps)
    assert values[1].isnan().all()
    assert (values[3] == 0).all()
    assert not values[[0, *range(2, 17)]].isnan().any()
    for i in range(17):
        assert torch.equal(one_order.svdvals(A[i], sweeps=sweeps), values[i]) or i == 1
    assert one_order.drivers_asked() == (["gesvdj"] * 32 if sweeps == 0 or n > 46 else [])
    last = A.clone()
    last[:, -1, -1] = math.inf
    assert one_order.svdvals(last, sweeps=sweeps).isnan().all()


@pytest.mark.parametrize("power", [-1074, -1000, -500, 0, 500, 1015])
@pytest.mark.parametrize("sweeps", [0, 100])
def test_scaling_is_exact(power, sweeps, one_order):
    for m, n in ((4, 4), (300, 3), (40, 20)):
        A = tests.integers(m, n)
        values = scaled(one_order.svdvals(A, sweeps=sweeps), power)
        assert torch.equal(one_order.svdvals(scaled(A, power), sweeps=sweeps), values)


def test_strides_of_a_batch(one_order):
    A = normal(2, 3, 4, 9, 5)
    expected = one_order.svdvals(A.contiguous())
    orders = list(itertools.permutations(range(5)))
    for order in orders if PLAIN else orders[::11]:
        laid = A.permute(order).contiguous().permute([order.index(axis) for axis in range(5)])
        assert torch.equal(one_order.svdvals(laid), expected)
        assert torch.equal(one_order.svdvals(laid.mT), expected)
    one = A[:1, :1, :1]
    assert torch.equal(
        one_order.svdvals(one.expand(2, 3, 4, 9, 5)), expected[:1, :1, :1].expand(2, 3, 4, 5)
    )


@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("how", ["throws", "returns NaN"])
@pytest.mark.parametrize(
    ("shape", "sweeps"),
    [((3, 4, 6), 0), ((2, 60, 50), 100), ((1, 3000, 50), 100), ((1, 50, 48), 1)],
)
def test_one_driver_after_the_other(shape, sweeps, failing, how, one_order):
    one_order.emulate(*ORDERS["random"], AVAILABLE["little"], 108)
    bad = DRIVERS[:failing]
    one_order.fail_drivers(*((bad, []) if how == "throws" else ([], bad)))
    A = normal(*shape)
    values = one_order.svdvals(A, sweeps=sweeps)
    assert one_order.drivers_asked() == DRIVERS[: failing + 1] * shape[0]
    if failing == len(DRIVERS):
        assert values.isnan().all()
    else:
        assert distance(values, by_numpy(A)) <= 10 * min(shape[1:])


@pytest.mark.parametrize("n", [2, 9, 33])
def test_only_what_needs_more_sweeps_is_done_by_torch(n, one_order):
    A = torch.stack(
        [torch.eye(n, dtype=F64), normal(n, n), torch.diag(torch.arange(1.0, n + 1).double())]
    )
    values = one_order.svdvals(A, sweeps=1)
    assert one_order.drivers_asked() == ["gesvdj"]
    assert distance(values, by_numpy(A)) <= 10 * n
    one_order.fail_drivers(DRIVERS, [])
    values = one_order.svdvals(A, sweeps=1)
    assert values[1].isnan().all()
    assert torch.equal(values[[0, 2]], by_numpy(A[[0, 2]]))


def test_arguments_are_refused_as_on_the_cpu(one_order):
    if not tests._ops.NATIVE:
        pytest.skip(tests._ops.REASON)
    square = torch.ones(3, 3)
    for A, sweeps in [
        (square[0], 1),
        (square.half(), 1),
        (square.int(), 1),
        (square, -1),
        (square, 1001),
    ]:
        with pytest.raises(RuntimeError) as ours:
            one_order.svdvals(A, sweeps=sweeps)
        with pytest.raises(RuntimeError) as theirs:
            torch.ops.llr.svdvals(A, sweeps=sweeps)
        assert str(ours.value).splitlines()[0] == str(theirs.value).splitlines()[0]
    for shape in [(0, 0), (0, 4), (3, 0, 4), (0, 3, 4), (2**30, 2**30, 0, 3)]:
        values = one_order.svdvals(torch.empty(shape))
        assert values.shape == (*shape[:-2], min(shape[-2:]))
    assert one_order.statistics() == [0, 0, 0]

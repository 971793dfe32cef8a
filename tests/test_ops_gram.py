"""The operators for Gram matrices of Jacobians and their factors. Needs torch, numpy and pytest
only; one test needs python-flint's exact singular values too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from oracles import ACTIVATIONS, Net, Tensors, assert_matches, draw, name, run_tests_at
from torch import Tensor
from torch.library import opcheck

from llr import _ops, reference

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

OP = torch.ops.llr
F64, F32 = torch.float64, torch.float32
EPS = 2.0**-52
BITS = 110  # finer than the last bit of any signal here
ONES = torch.ones(1, 1, 1, dtype=F64)
both_dtypes = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=F64)


def product(J: Tensor) -> Tensor:
    rows = J.flatten(-3, -2)
    return (rows @ rows.mT).view(*J.shape[:-1], *J.shape[-3:-1])


def check(
    net: Net, activation: str = "tanh", dtype: torch.dtype = F64, given: Tensors | None = None
) -> None:
    x, weights, biases = draw(net, dtype) if given is None else given
    exactly = [b if b is None else b.double() for b in biases]
    J = reference.mlp_jacobian(x.double(), [w.double() for w in weights], exactly, activation)
    plain = OP.mlp_gram(x, weights, biases, activation)
    both = OP.mlp_gram(x, weights, biases, activation, None, True)
    assert plain.dtype == both.dtype == F64
    assert_matches(plain, product(J))
    assert_matches(both[0], plain, 1e-14)
    assert (both[1].abs() <= 2.0**-53 * both[0].abs()).all()  # the high part is the rounded sum
    for K in (plain, *both):
        assert torch.equal(K, K.transpose(-4, -2).transpose(-3, -1))


@both_dtypes
@pytest.mark.parametrize("widths", [(5, 3), (4, 18, 2), (3, 17, 5, 1), (6, 9, 17, 4, 2)], ids=name)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_every_activation_at_every_depth(activation, widths, dtype):
    check(Net(widths, n=7), activation, dtype)


@pytest.mark.parametrize("q", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 21, 22, 32, 33, 63, 64, 65, 128, 129])
def test_tiles(n, q):
    check(Net((3, 6, q), n))
    assert OP.mlp_gram(*draw(Net((3, 6, q), n)), "tanh", None, True).shape == (2, n, q, n, q)


# Wider than the pieces that signals are computed in, and that sums are cut into.
WIDE = [Net((300, 4, 2), 9), Net((4, 300, 2), 9), Net((5, 513, 257, 1), 6), Net((2, 3, 300), 1)]
FLAGS = list(itertools.product([False, True], repeat=3))


@both_dtypes
@pytest.mark.parametrize("net", WIDE + [Net((3, 6, 7, 2), 9, b) for b in FLAGS], ids=name)
def test_wide_layers_and_biases(net, dtype):
    check(net, "sigmoid", dtype)


@pytest.mark.parametrize("own_x", [False, True])
@pytest.mark.parametrize("points", [0, 1, 3])
@pytest.mark.parametrize("n", [0, 1, 23])
def test_parameter_points(n, points, own_x):
    net = Net((3, 5, 3), n, (True, False), points, own_x)
    K = OP.mlp_gram(*draw(net), "tanh", None, True)
    assert K.shape == (2, points, n, 3, n, 3)
    if points > 0:
        check(net)


def test_every_choice_of_tensors():
    x, weights, biases = draw(Net((3, 4, 2, 2), 5))
    sizes = [12, 4, 8, 2, 4, 2]
    blocks = reference.mlp_jacobian(x, weights, biases, "tanh").split(sizes, -1)
    for chosen in itertools.product([False, True], repeat=6):
        if any(chosen):
            starts = itertools.accumulate(itertools.compress(sizes, chosen), initial=0)
            columns = [next(starts) if c else -1 for c in chosen]
            expected = product(torch.cat(list(itertools.compress(blocks, chosen)), -1))
            for dd in (False, True):
                K = OP.mlp_gram(x, weights, biases, "tanh", columns, dd)
                assert_matches(K[0] if dd else K, expected)


def test_arguments_of_any_layout():
    x, weights, biases = draw(Net((6, 20, 2), 17))
    expected = OP.mlp_gram(x, weights, biases, "tanh")
    lazily = lambda t: torch.complex(t * 0, -t).conj().imag  # noqa: E731
    for layout in (lambda t: t.repeat_interleave(2, 0)[::2], lambda t: t.mT.clone().mT, lazily):
        moved = [layout(w) for w in weights]
        assert torch.equal(OP.mlp_gram(layout(x), moved, biases, "tanh"), expected)
    check(Net((6, 20, 2)), given=Tensors(torch.stack([x, -x, 2 * x]), weights, biases))


@both_dtypes
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_integers_beyond_a_double(activation, dtype):
    """Signals of integers are exact, so that the Gram matrix can be known to the last of its digits."""
    sizes = [(12, 7), (300, 7), (5, 300), (3, 5), (300,), (3,)]
    x, w0, w1, w2, b0, b2 = (torch.randint(-512, 512, size).to(dtype) for size in sizes)
    exactly = [t.double() for t in (w0, w1, w2)], [b0.double(), None, b2.double()]
    J = reference.mlp_jacobian(x.double(), *exactly, activation).flatten(0, 1)
    exact = as_integers(J, 0) @ as_integers(J, 0).T
    assert max(abs(v) for v in exact.flat) > 2**60
    K = OP.mlp_gram(x, [w0, w1, w2], [b0, None, b2], activation, None, True).view(2, 36, 36)
    assert worst_error(K, exact, 0, J.abs() @ J.abs().T) <= 2.0**-100


def as_integers(t: Tensor, bits: int) -> np.ndarray:
    """The doubles times 2^bits, as Python's integers; refuses what that does not make whole."""
    scaled = [Fraction(v) * 2**bits for v in t.flatten().tolist()]
    assert all(v.denominator == 1 for v in scaled)
    return np.array([int(v) for v in scaled], dtype=object).reshape(t.shape)


def worst_error(K: Tensor, exact: np.ndarray, bits: int, scale: Tensor) -> float:
    """Largest |K - exact / 2^bits| / scale, where K is (N, N), or (2, N, N) for high + low."""
    parts = [part.flatten().tolist() for part in (K if K.dim() == 3 else K[None])]
    found = 0.0
    for *values, wanted, size in zip(*parts, exact.flat, scale.flatten().tolist(), strict=True):
        off = abs(sum(map(Fraction, values)) - Fraction(wanted, 2**bits))
        assert size > 0 or off == 0
        found = max(found, float(off / Fraction(size)) if size > 0 else 0.0)
    return found


def exact_layer(delta: Tensor, a: Tensor, bias: bool, weight: bool) -> tuple[np.ndarray, Tensor]:
    """The layer's Gram matrix times 2^(4 BITS), and the sums of the terms' absolute values."""
    d, s = as_integers(delta, BITS), as_integers(a, BITS)
    positions = range(delta.shape[1])
    size = torch.zeros(len(delta), len(delta), dtype=F64)
    total = np.zeros(size.shape, dtype=object)
    for t, u in itertools.product(positions, positions):
        inner = s[:, t] @ s[:, u].T if weight else 0
        total = total + (d[:, t] @ d[:, u].T) * (inner + (int(bias) << 2 * BITS))
        terms = (a[:, t].abs() @ a[:, u].abs().T) * weight + bias
        size += (delta[:, t].abs() @ delta[:, u].abs().T) * terms
    return total, size


SHAPES = [(6, 1, 1, 5), (5, 3, 4, 2), (65, 1, 3, 2), (9, 1, 300, 1), (7, 2, 1, 520), (3, 5, 2, 2)]


def layer(shape: tuple[int, int, int, int], kind: str) -> tuple[Tensor, Tensor]:
    n, t, h, w = shape
    delta, a = normal(n, t, h), normal(n, t, w, seed=1)
    if kind == "graded":
        delta *= 2.0 ** torch.linspace(-8, 8, h).round()
        a *= 2.0 ** torch.linspace(20, -20, w).round()
    if kind == "cancelling":  # all but the last digits of every sum go
        a = torch.cat([a, -a + a * 2.0**-40], -1)
        a[1:, :, w:] = a[1:, :, :w]
    return (delta * 2.0**50).round() / 2.0**50, (a * 2.0**80).round() / 2.0**80


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=2)), ids=str)
@pytest.mark.parametrize("kind", ["plain", "graded", "cancelling"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layers_in_rational_arithmetic(shape, kind, flags):
    delta, a = layer(shape, kind)
    n = shape[0]
    exact, size = exact_layer(delta, a, *flags)
    K, plain = torch.zeros(2, n, n, dtype=F64), torch.zeros(n, n, dtype=F64)
    assert OP.gram_add_(K, delta, a, *flags) is None
    OP.gram_add_(plain, delta, a, *flags)
    assert worst_error(K, exact, 4 * BITS, size) <= 2.0**-96
    assert worst_error(plain, exact, 4 * BITS, size) <= 1e-13
    assert torch.equal(K, K.mT)
    assert torch.equal(plain, plain.mT)
    # Once more, and another layer on top.
    more = layer((n, 2, 3, 2), "graded")
    OP.gram_add_(K, delta, a, *flags)
    OP.gram_add_(K, *more, True, True)
    further, its_size = exact_layer(*more, True, True)
    assert worst_error(K, 2 * exact + further, 4 * BITS, 2 * size + its_size) <= 2.0**-96


def test_a_plain_block_of_columns():
    J = on_grid(normal(70, 130))
    K, both = torch.zeros(70, 70, dtype=F64), torch.zeros(2, 70, 70, dtype=F64)
    for result in (K, both):
        OP.gram_add_(result, ONES.expand(70, 1, 1), J[:, None], False, True)
    whole, size = as_integers(J, 60), J.abs() @ J.abs().T
    assert worst_error(both, whole @ whole.T, 120, size) <= 2.0**-100
    assert 1e-18 < worst_error(K, whole @ whole.T, 120, size) < 1e-15  # what one double can do


@pytest.mark.parametrize("parts", [1, 2])
def test_empty_layers(parts):
    K = normal(3, 3).expand(parts, 3, 3) * torch.tensor([1.0, 2.0**-60])[:parts, None, None]
    K = (K if parts == 2 else K[0]).contiguous()
    before = K.clone()
    for t, h, w in [(0, 2, 2), (2, 0, 3), (2, 3, 0)]:
        delta, a = ONES.expand(3, t, h), ONES.expand(3, t, w)
        OP.gram_add_(K, delta, a, False, True)
        assert torch.equal(K.tril(), before.tril())
    OP.gram_add_(K, delta, a, True, True)
    assert_matches(K.tril().view(-1, 3, 3)[0], (before + 12).tril().view(-1, 3, 3)[0], 1e-15)
    OP.gram_add_(K[..., :0, :0].clone(), delta[:0], a[:0], True, True)


def test_autograd_learns_that_it_changed():
    K = torch.ones(3, 3, dtype=F64)
    product = K * torch.ones((), dtype=F64, requires_grad=True)
    OP.gram_add_(K, ONES.expand(3, 1, 1), ONES.expand(3, 1, 1), False, True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def gram(J: Tensor, bits: int = 60) -> Tensor:
    """J J' in double-double, rounded once."""
    whole = as_integers(J, bits)
    exact = [Fraction(v, 4**bits) for v in (whole @ whole.T).flat]
    high = [float(v) for v in exact]
    low = [float(v - Fraction(h)) for v, h in zip(exact, high, strict=True)]
    return torch.tensor([high, low], dtype=F64).view(2, len(J), len(J))


def on_grid(J: Tensor, bits: int = 60) -> Tensor:
    return (J * 2.0**bits).round() / 2.0**bits


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
    L = OP.gram_factor(K)
    assert L.shape == (n, n)
    allowed = 10 * n * EPS * exact[0]
    assert (torch.linalg.svdvals(L) - exact).abs().max() <= allowed
    assert_matches(L @ L.T, K[0], 1e-14)
    if n > 1:  # in one double, nothing is left of the smallest
        plain = torch.linalg.eigvalsh(K[0]).abs().sqrt().min()
        assert (plain - exact[-1]).abs() > 100 * allowed


@pytest.mark.parametrize(("n", "r"), [(1, 1), (4, 1), (7, 3), (30, 29), (66, 40), (130, 64)])
def test_rank_of_integers(n, r):
    generator = torch.Generator().manual_seed(n + r)
    parts = [torch.randint(-9, 10, s, generator=generator).double() for s in [(n, r), (r, n + 20)]]
    J = parts[0] @ parts[1]
    L = OP.gram_factor(gram(J, 0))
    assert L.shape == (n, r)
    assert_matches(L @ L.T, J @ J.T, 1e-14)
    assert OP.gram_factor(gram(J[torch.randperm(n)], 0)).shape == (n, r)
    for power in (-150, 7, 150):
        assert torch.equal(OP.gram_factor(gram(J, 0) * 4.0**power), L * 2.0**power)


def test_factors_of_a_batch():
    low_rank, zero = on_grid(normal(9, 3) @ normal(3, 12, seed=1)), torch.zeros(9, 12)
    matrices = [normal(9, 12), low_rank, zero, ill_conditioned(9, 12, 1e-9)]
    K = torch.stack([gram(on_grid(J)) for J in matrices], 1)
    L = OP.gram_factor(K)
    assert L.shape == (4, 9, 9)
    for i in range(4):
        alone = OP.gram_factor(K[:, i])
        assert torch.equal(L[i, :, : alone.shape[1]], alone)
        assert (L[i, :, alone.shape[1] :] == 0).all()
    assert torch.equal(OP.gram_factor(K.mT.contiguous().mT), L)
    for n, batch in itertools.product([0, 1, 2, 65], ([], [3], [0])):
        assert OP.gram_factor(torch.zeros(2, *batch, n, n, dtype=F64)).shape == (*batch, n, 0)


def test_what_is_not_finite_is_no_low_rank():
    """Refused, or an L that shows it: not a clean factor of fewer columns."""
    for entry, bad in itertools.product([(0, 0), (1, 1), (2, 0)], [math.nan, math.inf]):
        K = torch.stack([torch.eye(3, dtype=F64), torch.zeros(3, 3, dtype=F64)])
        K[0][entry] = K[0][entry[::-1]] = bad
        try:
            L = OP.gram_factor(K)
        except RuntimeError:
            continue
        assert not torch.isfinite(L).all(), f"rank {L.shape[1]} with {bad} at {entry}"


def test_from_a_network_to_its_singular_values():
    tensors = draw(Net((3, 6, 6, 2), 40))
    J = reference.mlp_jacobian(*tensors, "tanh").flatten(0, 1)
    K = OP.mlp_gram(*tensors, "tanh", None, True).view(2, 80, 80)
    values, expected = torch.linalg.svdvals(OP.gram_factor(K)), torch.linalg.svdvals(J)
    assert (values - expected[: len(values)]).abs().max() <= 1e-13 * expected[0]
    assert (expected[len(values) :] <= 1e-13 * expected[0]).all()


def results() -> Iterator[Tensor]:
    for net in (Net((5, 40, 3), 90), Net((3, 300, 200, 1), 140)):
        yield OP.mlp_gram(*draw(net), "tanh")
        K = OP.mlp_gram(*draw(net), "tanh", None, True).flatten(1, 2).flatten(2, 3)
        yield from (K, OP.gram_factor(K))


@pytest.mark.usefixtures("threads")
def test_bits_do_not_depend_on_threads():
    torch.set_num_threads(1)
    expected = list(results())
    for count in (2, 3, 5):
        torch.set_num_threads(count)
        assert all(map(torch.equal, results(), expected)), f"{count} threads"


@pytest.mark.slow
def test_every_instruction_level(simd_level):
    if simd_level == _ops.build_info()["simd_running"]:
        pytest.skip("the level of this very run")
    run = run_tests_at(simd_level, "test_ops_gram.py", "not threads and not bad and not opcheck")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


K3 = torch.zeros(3, 3, dtype=F64)
D3, A3 = ONES.expand(3, 2, 4), ONES.expand(3, 2, 5)
BAD_ADD = [
    (K3.float(), D3, A3, "K is Float; expected float64"),
    (K3[:, :2], D3, A3, r"K has shape \[3, 2\]; expected \(N, N\), or \(2, N, N\)"),
    (K3.expand(3, 3, 3), D3, A3, r"K has shape \[3, 3, 3\]; expected"),
    (torch.zeros(3, 4, dtype=F64)[:, :3], D3, A3, "K is not contiguous"),
    (K3[0].expand(3, 3), D3, A3, "K is not contiguous|single memory location"),
    (K3, D3.float(), A3, r"delta is Float of shape \[3, 2, 4\] on cpu; expected float64 \(3, T"),
    (K3, D3, A3.float(), r"a is Float of shape \[3, 2, 5\] on cpu; expected float64"),
    (K3, D3[:2], A3, r"delta is Double of shape \[2, 2, 4\]"),
    (K3, D3, A3[:, :1], r"a is Double of shape \[3, 1, 5\]"),
    (K3, D3.to("meta"), A3, "delta is .*on meta"),
    (K3, D3, A3.to("meta"), "a is .*on meta"),
]


@pytest.mark.parametrize(("K", "delta", "a", "message"), BAD_ADD)
def test_bad_layers(K, delta, a, message):
    before = K.clone()
    with pytest.raises(RuntimeError, match=message):
        OP.gram_add_(K, delta, a, True, True)
    assert torch.equal(K, before)


def test_other_bad_arguments():
    x, (w0, w1), biases = draw(Net((3, 4, 2)))
    with pytest.raises(RuntimeError, match=r"weights\[0\] has shape \[4, 3\]; expected 2 columns"):
        OP.mlp_gram(x[:, :2], [w0, w1], biases, "tanh")
    with pytest.raises(RuntimeError, match=r"weights\[1\] is on meta but x is on cpu"):
        OP.mlp_gram(x, [w0, w1.to("meta")], biases, "tanh")
    for shape in [(3, 3), (3, 3, 3), (2, 3, 4), (2, 2, 2, 3, 3)]:
        with pytest.raises(
            RuntimeError, match=r"K has shape \[.*\]; expected \(2, N, N\) or \(2, B"
        ):
            OP.gram_factor(torch.zeros(shape, dtype=F64))
    with pytest.raises(RuntimeError, match="K is Float; expected float64"):
        OP.gram_factor(torch.zeros(2, 3, 3))
    with pytest.raises(RuntimeError, match="mlp_gram: unknown activation 'swish'"):
        OP.mlp_gram(x, [w0, w1], biases, "swish")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("dd", [False, True])
def test_opcheck(dd):
    for net in (Net((3, 4, 2)), Net((3, 4, 1), 0), Net((2, 3, 2), 4, points=3, own_x=True)):
        x, weights, biases = draw(net)
        opcheck(OP.mlp_gram.default, (x, weights, biases, "tanh", None, dd))
    K = torch.zeros(2, 3, 3, dtype=F64) if dd else K3.clone()
    opcheck(OP.gram_add_.default, (K, D3, A3, True, False))
    J = on_grid(normal(4, 2) @ normal(2, 5, seed=1))
    K = torch.stack([gram(J), gram(J)], 1) if dd else gram(J)
    opcheck(OP.gram_factor.default, (K,))

"""The operators for Gram matrices of Jacobians. Needs torch, numpy and pytest only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.oracles import (
    ACTIVATIONS,
    Net,
    Tensors,
    as_integers,
    assert_matches,
    draw,
    name,
    normal,
    on_grid,
)
from helpers.targets import Target
from torch import Tensor
from torch.library import opcheck

from llr.operators import _ops, formula

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

F64, F32 = torch.float64, torch.float32
BITS = 110  # finer than the last bit of any signal here
ONES = torch.ones(1, 1, 1, dtype=F64)
both_dtypes = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])


def product(J: Tensor) -> Tensor:
    rows = J.flatten(-3, -2)
    return (rows @ rows.mT).view(*J.shape[:-1], *J.shape[-3:-1])


def check(
    target: Target,
    net: Net,
    activation: str = "tanh",
    dtype: torch.dtype = F64,
    given: Tensors | None = None,
) -> None:
    x, weights, biases = draw(net, dtype, target.device) if given is None else given
    exactly = [b if b is None else b.double() for b in biases]
    J = formula.mlp_jacobian(x.double(), [w.double() for w in weights], exactly, activation)
    plain = target.op.mlp_gram(x, weights, biases, activation)
    both = target.op.mlp_gram(x, weights, biases, activation, None, True)
    assert plain.dtype == both.dtype == F64
    assert_matches(plain, product(J))
    assert_matches(both[0], plain, 1e-14)
    assert (both[1].abs() <= 2.0**-53 * both[0].abs()).all()  # the high part is the rounded sum
    for K in (plain, *both):
        assert torch.equal(K, K.transpose(-4, -2).transpose(-3, -1))


@both_dtypes
@pytest.mark.parametrize("widths", [(5, 3), (4, 18, 2), (3, 17, 5, 1), (6, 9, 17, 4, 2)], ids=name)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_every_activation_at_every_depth(activation, widths, dtype, target):
    check(target, Net(widths, n=7), activation, dtype)


@pytest.mark.parametrize("q", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 21, 22, 32, 33, 63, 64, 65, 128, 129])
def test_tiles(n, q, target):
    check(target, Net((3, 6, q), n))
    tensors = draw(Net((3, 6, q), n), F64, target.device)
    assert target.op.mlp_gram(*tensors, "tanh", None, True).shape == (2, n, q, n, q)


# Wider than the pieces in which signals are computed and sums are divided.
WIDE = [Net((300, 4, 2), 9), Net((4, 300, 2), 9), Net((5, 513, 257, 1), 6), Net((2, 3, 300), 1)]
FLAGS = list(itertools.product([False, True], repeat=3))


@both_dtypes
@pytest.mark.parametrize("net", WIDE + [Net((3, 6, 7, 2), 9, b) for b in FLAGS], ids=name)
def test_wide_layers_and_biases(net, dtype, target):
    check(target, net, "sigmoid", dtype)


@pytest.mark.parametrize("own_x", [False, True])
@pytest.mark.parametrize("points", [0, 1, 3])
@pytest.mark.parametrize("n", [0, 1, 23])
def test_parameter_points(n, points, own_x, target):
    net = Net((3, 5, 3), n, (True, False), points, own_x)
    K = target.op.mlp_gram(*draw(net, F64, target.device), "tanh", None, True)
    assert K.shape == (2, points, n, 3, n, 3)
    if points > 0:
        check(target, net)


def test_every_choice_of_tensors(target):
    x, weights, biases = draw(Net((3, 4, 2, 2), 5), F64, target.device)
    sizes = [12, 4, 8, 2, 4, 2]
    blocks = formula.mlp_jacobian(x, weights, biases, "tanh").split(sizes, -1)
    for chosen in itertools.product([False, True], repeat=6):
        if any(chosen):
            starts = itertools.accumulate(itertools.compress(sizes, chosen), initial=0)
            columns = [next(starts) if c else -1 for c in chosen]
            expected = product(torch.cat(list(itertools.compress(blocks, chosen)), -1))
            for dd in (False, True):
                K = target.op.mlp_gram(x, weights, biases, "tanh", columns, dd)
                assert_matches(K[0] if dd else K, expected)


def test_arguments_of_any_layout(target):
    x, weights, biases = draw(Net((6, 20, 2), 17), F64, target.device)
    expected = target.op.mlp_gram(x, weights, biases, "tanh")
    lazily = lambda t: torch.complex(t * 0, -t).conj().imag  # noqa: E731
    for layout in (lambda t: t.repeat_interleave(2, 0)[::2], lambda t: t.mT.clone().mT, lazily):
        moved = [layout(w) for w in weights]
        assert torch.equal(target.op.mlp_gram(layout(x), moved, biases, "tanh"), expected)
    check(target, Net((6, 20, 2)), given=Tensors(torch.stack([x, -x, 2 * x]), weights, biases))


@both_dtypes
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_integers_beyond_a_double(activation, dtype, target):
    """Integer signals are exact, so all digits of the Gram matrix are known."""
    sizes = [(12, 7), (300, 7), (5, 300), (3, 5), (300,), (3,)]
    drawn = (torch.randint(-512, 512, size) for size in sizes)
    x, w0, w1, w2, b0, b2 = (t.to(target.device, dtype) for t in drawn)
    exactly = [t.double() for t in (w0, w1, w2)], [b0.double(), None, b2.double()]
    J = formula.mlp_jacobian(x.double(), *exactly, activation).flatten(0, 1)
    exact = as_integers(J, 0) @ as_integers(J, 0).T
    assert max(abs(v) for v in exact.flat) > 2**60
    K = target.op.mlp_gram(x, [w0, w1, w2], [b0, None, b2], activation, None, True)
    assert worst_error(K.view(2, 36, 36), exact, 0, J.abs() @ J.abs().T) <= 2.0**-100


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
    """The layer's exact Gram matrix times 2^(4 BITS), and the sums of the terms' absolute values."""
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
    if kind == "cancelling":  # only the last digits of every sum remain
        a = torch.cat([a, -a + a * 2.0**-40], -1)
        a[1:, :, w:] = a[1:, :, :w]
    return (delta * 2.0**50).round() / 2.0**50, (a * 2.0**80).round() / 2.0**80


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=2)), ids=str)
@pytest.mark.parametrize("kind", ["plain", "graded", "cancelling"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layers_in_rational_arithmetic(shape, kind, flags, target):
    delta, a = layer(shape, kind)
    n = shape[0]
    exact, size = exact_layer(delta, a, *flags)
    delta, a = delta.to(target.device), a.to(target.device)
    K, plain = delta.new_zeros(2, n, n), delta.new_zeros(n, n)
    assert target.op.gram_add_(K, delta, a, *flags) is None
    target.op.gram_add_(plain, delta, a, *flags)
    assert worst_error(K, exact, 4 * BITS, size) <= 2.0**-96
    assert worst_error(plain, exact, 4 * BITS, size) <= 1e-13
    assert torch.equal(K, K.mT)
    assert torch.equal(plain, plain.mT)
    # Again, with another layer added.
    more = layer((n, 2, 3, 2), "graded")
    target.op.gram_add_(K, delta, a, *flags)
    target.op.gram_add_(K, *(t.to(target.device) for t in more), True, True)
    further, its_size = exact_layer(*more, True, True)
    assert worst_error(K, 2 * exact + further, 4 * BITS, 2 * size + its_size) <= 2.0**-96


def test_a_plain_block_of_columns(target):
    J = on_grid(normal(70, 130))
    ones, columns = ONES.to(target.device).expand(70, 1, 1), J[:, None].to(target.device)
    K, both = columns.new_zeros(70, 70), columns.new_zeros(2, 70, 70)
    for result in (K, both):
        target.op.gram_add_(result, ones, columns, False, True)
    whole, size = as_integers(J, 60), J.abs() @ J.abs().T
    assert worst_error(both, whole @ whole.T, 120, size) <= 2.0**-100
    assert 1e-18 < worst_error(K, whole @ whole.T, 120, size) < 1e-15  # the precision of one double


@pytest.mark.parametrize("parts", [1, 2])
def test_empty_layers(parts, target):
    ones = ONES.to(target.device)
    K = normal(3, 3).expand(parts, 3, 3) * torch.tensor([1.0, 2.0**-60])[:parts, None, None]
    K = (K if parts == 2 else K[0]).contiguous().to(target.device)
    before = K.clone()
    for t, h, w in [(0, 2, 2), (2, 0, 3), (2, 3, 0)]:
        delta, a = ones.expand(3, t, h), ones.expand(3, t, w)
        target.op.gram_add_(K, delta, a, False, True)
        assert torch.equal(K.tril(), before.tril())
    target.op.gram_add_(K, delta, a, True, True)
    assert_matches(K.tril().view(-1, 3, 3)[0], (before + 12).tril().view(-1, 3, 3)[0], 1e-15)
    target.op.gram_add_(K[..., :0, :0].clone(), delta[:0], a[:0], True, True)


def test_autograd_learns_that_it_changed(target):
    ones = ONES.to(target.device).expand(3, 1, 1)
    K = ones.new_ones(3, 3)
    product = K * ones.new_ones((), requires_grad=True)
    target.op.gram_add_(K, ones, ones, False, True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_from_a_network_to_its_singular_values(target):
    tensors = draw(Net((3, 6, 6, 2), 40), F64, target.device)
    J = formula.mlp_jacobian(*tensors, "tanh").flatten(0, 1)
    K = target.op.mlp_gram(*tensors, "tanh", None, True).view(2, 80, 80)
    values, expected = torch.linalg.svdvals(_ops.gram_factor(K)), torch.linalg.svdvals(J)
    assert (values - expected[: len(values)]).abs().max() <= 1e-13 * expected[0]
    assert (expected[len(values) :] <= 1e-13 * expected[0]).all()


def results() -> Iterator[Tensor]:
    for net in (Net((5, 40, 3), 90), Net((3, 300, 200, 1), 140)):
        yield torch.ops.llr.mlp_gram(*draw(net), "tanh")
        K = torch.ops.llr.mlp_gram(*draw(net), "tanh", None, True).flatten(1, 2).flatten(2, 3)
        yield from (K, _ops.gram_factor(K))


@pytest.mark.usefixtures("threads")
def test_bits_do_not_depend_on_threads():
    torch.set_num_threads(1)
    expected = list(results())
    for count in (2, 3, 5):
        torch.set_num_threads(count)
        assert all(map(torch.equal, results(), expected)), f"{count} threads"


def bad_layers(device: str) -> list[tuple[Tensor, Tensor, Tensor, str]]:
    """Layers that are refused, and the messages, on this device."""
    K, ones = torch.zeros(3, 3, dtype=F64, device=device), ONES.to(device)
    d, a, here = ones.expand(3, 2, 4), ones.expand(3, 2, 5), str(K.device)
    return [
        (K.float(), d, a, "K is Float; expected float64"),
        (K[:, :2], d, a, r"K has shape \[3, 2\]; expected \(N, N\), or \(2, N, N\)"),
        (K.expand(3, 3, 3), d, a, r"K has shape \[3, 3, 3\]; expected"),
        (K.new_zeros(3, 4)[:, :3], d, a, "K is not contiguous"),
        (K[0].expand(3, 3), d, a, "K is not contiguous"),
        (
            K,
            d.float(),
            a,
            rf"delta is Float of shape \[3, 2, 4\] on {here}; expected float64 \(3, T",
        ),
        (K, d, a.float(), rf"a is Float of shape \[3, 2, 5\] on {here}; expected float64"),
        (K, d[:2], a, r"delta is Double of shape \[2, 2, 4\]"),
        (K, d, a[:, :1], r"a is Double of shape \[3, 1, 5\]"),
        (K, d.to("meta"), a, "delta is .*on meta"),
        (K, d, a.to("meta"), "a is .*on meta"),
    ]


@pytest.mark.parametrize("case", range(len(bad_layers("cpu"))))
def test_bad_layers(case, target):
    K, delta, a, message = bad_layers(target.device)[case]
    before = K.clone()
    with pytest.raises(RuntimeError, match=message):
        target.op.gram_add_(K, delta, a, True, True)
    assert torch.equal(K, before)


def test_bad_networks(target):
    x, (w0, w1), biases = draw(Net((3, 4, 2)), F64, target.device)
    for arguments, message in [
        ((x[:, :2], [w0, w1]), r"weights\[0\] has shape \[4, 3\]; expected 2 columns"),
        ((x, [w0, w1.to("meta")]), rf"weights\[1\] is on meta but x is on {x.device}"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            target.op.mlp_gram(*arguments, biases, "tanh")
    with pytest.raises(RuntimeError, match="mlp_gram: unknown activation 'swish'"):
        target.op.mlp_gram(x, [w0, w1], biases, "swish")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("dd", [False, True])
def test_opcheck(dd, target):
    for net in (Net((3, 4, 2)), Net((3, 4, 1), 0), Net((2, 3, 2), 4, points=3, own_x=True)):
        x, weights, biases = draw(net, F64, target.device)
        opcheck(target.op.mlp_gram.default, (x, weights, biases, "tanh", None, dd))
    ones = ONES.to(target.device)
    K = ones.new_zeros(2, 3, 3) if dd else ones.new_zeros(3, 3)
    opcheck(
        target.op.gram_add_.default, (K, ones.expand(3, 2, 4), ones.expand(3, 2, 5), True, False)
    )


def test_gram_add_to_a_matrix_between_two_numbers():
    memory = bytearray(9 * 8 + 8)
    K = torch.frombuffer(memory, dtype=F64, count=9, offset=3).view(3, 3)
    signals = torch.ones(3, 1, 2, dtype=F64)
    with pytest.raises(RuntimeError, match="gram_add_: K is not contiguous, is lazily negated, or"):
        torch.ops.llr.gram_add_(K, signals, signals, True, True)

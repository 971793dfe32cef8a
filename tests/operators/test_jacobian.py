"""The native operators. Needs torch, numpy, pytest and hypothesis only, so that they can also be tested
with other versions of torch and under sanitizers."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence

import pytest
import torch
from helpers.oracles import (
    ACTIVATIONS,
    Net,
    Tensors,
    assert_matches,
    draw,
    loop_jacobian,
    name,
    run_python,
)
from helpers.targets import Target
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llr.operators import _ops, formula

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

F64, F32 = torch.float64, torch.float32
both_dtypes = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])


def check(net: Net, activation: str, dtype: torch.dtype, target: Target) -> Tensor:
    tensors = draw(net, dtype, target.device)
    result = target.op.mlp_jacobian(*tensors, activation)
    assert result.device == tensors.x.device
    assert result.dtype == dtype
    assert result.is_contiguous()
    assert_matches(result, loop_jacobian(*tensors, activation))
    return result


# --- values ------------------------------------------------------------------------------------------

DEPTHS = [(5, 3), (7, 18, 2), (3, 33, 5, 1), (6, 9, 17, 4, 10), (2, 20, 1, 31, 13, 3)]
WIDTHS = [*range(1, 34), 63, 64, 65, *range(127, 131), 143, 144, 145, 257]
BIASES = list(itertools.product([False, True], repeat=3))


@both_dtypes
@pytest.mark.parametrize("widths", DEPTHS, ids=name)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_every_activation_at_every_depth(activation, widths, dtype, target):
    check(Net(widths, n=7), activation, dtype, target)


@both_dtypes
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_in_every_place(width, dtype, target):
    other = (width + 7) % 16 + 1
    for widths in [(width, 3, 2), (4, width, 2), (2, width, other, 1), (2, other, width, 3)]:
        check(Net(widths, n=2), "tanh", dtype, target)
    if width <= 34 or width == 130:
        check(Net((4, 3, width), n=1), "tanh", dtype, target)


@both_dtypes
@pytest.mark.parametrize("outputs", [1, 2, 3, 10])
@pytest.mark.parametrize("n", [0, 1, 2, 17, 33, 70])
def test_every_number_of_samples_and_outputs(n, outputs, dtype, target):
    result = check(Net((5, 19, outputs), n), "sigmoid", dtype, target)
    assert result.shape == (n, outputs, 5 * 19 + 19 + 19 * outputs + outputs)


@both_dtypes
@pytest.mark.parametrize("biases", BIASES, ids=lambda b: "".join(str(int(v)) for v in b))
def test_biases_on_and_off(biases, dtype, target):
    check(Net((3, 6, 7, 2), 17, biases), "silu", dtype, target)


@both_dtypes
@pytest.mark.parametrize("own_x", [False, True])
@pytest.mark.parametrize("points", [0, 1, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 17, 33])
@pytest.mark.parametrize("widths", [(2, 20, 1), (3, 5, 18, 3), (4, 2)], ids=name)
def test_parameter_points(widths, n, points, own_x, dtype, target):
    has_bias = tuple(layer != 1 for layer in range(len(widths) - 1))
    net = Net(widths, n, has_bias, points, own_x)
    tensors = draw(net, dtype, target.device)
    result = target.op.mlp_jacobian(*tensors, "tanh")
    assert result.shape[:3] == (points, n, widths[-1])
    if points > 0:
        assert_matches(result, loop_jacobian(*tensors, "tanh"))


@both_dtypes
def test_samples_of_their_own_with_one_set_of_parameters(dtype, target):
    x, weights, biases = draw(Net((3, 8, 2), 5), dtype, target.device)
    xs = torch.stack([x, -x, 2 * x])
    result = target.op.mlp_jacobian(xs, weights, biases, "tanh")
    assert_matches(result, loop_jacobian(xs, weights, biases, "tanh"))


@settings(max_examples=50, deadline=None)
@given(
    widths=st.lists(st.integers(1, 24), min_size=2, max_size=6),
    n=st.integers(0, 40),
    points=st.sampled_from([None, 1, 2, 5]),
    own_x=st.booleans(),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    dtype=st.sampled_from([F64, F32]),
    data=st.data(),
)
def test_any_shape(widths, n, points, own_x, activation, dtype, data, target):
    layers = len(widths) - 1
    biases = tuple(data.draw(st.lists(st.booleans(), min_size=layers, max_size=layers)))
    net = Net(tuple(widths), n, biases, points, own_x and points is not None)
    tensors = draw(net, dtype, target.device)
    exact = formula.mlp_jacobian(*in_float64(tensors), activation)
    assert_matches(
        target.op.mlp_jacobian(*tensors, activation), exact, 1e-13 if dtype == F64 else 1e-6
    )


def in_float64(tensors: Tensors) -> Tensors:
    x, weights, biases = tensors
    return Tensors(
        x.double(),
        [w.double() for w in weights],
        [None if b is None else b.double() for b in biases],
    )


# Results above 2 MB use huge pages; from 32 MB on they are written with stores that bypass the caches.
# Weights of more than 2^15 numbers are written in strips; signals of more than 8 MB are computed in rounds.
LARGE = [
    Net((5, 64, 1), 700),
    Net((5, 64, 1), 20_001),
    Net((5, 64, 1), 1500, biases=False),
    Net((10, 256, 256, 1), 9, biases=(True, False, True)),
    Net((784, 20, 10), 9),
    Net((2, 20, 1), 1000, points=7),
    Net((3, 17, 5, 2), 400, biases=(False, True, True), points=5, own_x=True),
    Net((300, 200, 2), 9, biases=(True, False)),
    Net((32769, 3, 2), 3),
    Net((1, 40000, 1), 6),
    Net((1, 4096, 1), 100, biases=False),
    Net((1, 1, 1), 200_000),
    Net((7, 90, 90, 90, 3), 33),
]


@both_dtypes
@pytest.mark.parametrize("net", LARGE, ids=name)
def test_large_results(net, dtype, target):
    tensors = draw(target.sized(net), dtype, target.device)
    result = target.op.mlp_jacobian(*tensors, "tanh")
    assert_matches(result, formula.mlp_jacobian(*in_float64(tensors), "tanh"))
    few = tensors._replace(x=tensors.x[..., -2:, :])
    assert_matches(result[..., -2:, :, :], loop_jacobian(*few, "tanh"))


def test_more_outputs_than_are_computed_at_once(target):
    # Only the first layer's columns: the result stays small, the signals do not.
    x, (w0, w1), biases = draw(Net((1, 4096, 300), 2, biases=False), F64, target.device)
    result = target.op.mlp_jacobian(x, [w0, w1], biases, "tanh", [0, -1, -1, -1])
    slope = torch.cosh(x @ w0.T) ** -2
    assert_matches(result, w1 * (slope * x).unsqueeze(1))


# --- layouts of the arguments ------------------------------------------------------------------------


def strided(t: Tensor) -> Tensor:
    large = t.new_full([2 * s + 1 for s in t.shape], float("nan"))
    view = large[tuple(slice(1, 2 * s + 1, 2) for s in t.shape)]
    return view.copy_(t)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "permuted": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "strided": strided,
    "misaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "expanded": lambda t: t.flatten()[0].expand(t.shape),
    "expanded rows": lambda t: t[:1].expand(t.shape),
}


@both_dtypes
@pytest.mark.parametrize("points", [None, 3])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_layouts(layout, points, dtype, target):
    x, weights, biases = draw(
        Net((6, 20, 9, 2), 17, points=points, own_x=points is not None), dtype
    )
    x = layout(x.to(target.device))
    weights = [layout(w.to(target.device)) for w in weights]
    biases = [layout(b.to(target.device)) for b in biases]
    result = target.op.mlp_jacobian(x, weights, biases, "tanh")
    assert_matches(result, loop_jacobian(x, weights, biases, "tanh"))


# A lazy negation is a flag on the tensor that only some operations check.
@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_lazily_negated_arguments(which, target):
    x, weights, biases = draw(Net((3, 1, 2), 4), F64, target.device)
    lazily = lambda t: torch.complex(t * 0, -t).conj().imag  # noqa: E731
    expected = target.op.mlp_jacobian(x, weights, biases, "tanh")
    if which == "x":
        x = lazily(x)
    elif which == "weight":
        weights = [lazily(weights[0]), weights[1]]
    else:
        biases = [lazily(biases[0]), biases[1]]
    assert_matches(target.op.mlp_jacobian(x, weights, biases, "tanh"), expected)


# --- columns -----------------------------------------------------------------------------------------


def placed(full: Tensor, net: Net, order: Sequence[int]) -> tuple[list[int], Tensor]:
    """`columns` for tensors (0: first weight, 1: first bias, ...) in this order, and the column numbers."""
    sizes = []
    for into, out in itertools.pairwise(net.widths):
        sizes += [into * out, out]
    sizes = [s if i % 2 == 0 or net.has_bias[i // 2] else 0 for i, s in enumerate(sizes)]
    starts = [0, *itertools.accumulate(sizes)]
    columns, at, blocks = [-1] * len(sizes), 0, []
    for tensor in order:
        columns[tensor] = at
        at += sizes[tensor]
        blocks.append(full[..., starts[tensor] : starts[tensor + 1]])
    return columns, torch.cat(blocks, -1)


ORDERS = [list(order) for count in (1, 2, 4) for order in itertools.permutations(range(4), count)]


@both_dtypes
@pytest.mark.parametrize("net", [Net((3, 18, 2), 3), Net((5, 9, 2), 3, points=2)], ids=name)
def test_columns_in_every_order(net, dtype, target):
    tensors = draw(net, dtype, target.device)
    full = target.op.mlp_jacobian(*tensors, "tanh")
    for order in ORDERS:
        columns, expected = placed(full, net, order)
        assert torch.equal(target.op.mlp_jacobian(*tensors, "tanh", columns), expected), order


@both_dtypes
@pytest.mark.parametrize("order", [[4, 0, 5, 1], [2], [5, 4, 2, 1, 0], [0, 1]], ids=name)
def test_columns_of_a_large_result(order, dtype, target):
    net = target.sized(Net((9, 150, 60, 3), 230, biases=(True, False, True)))
    tensors = draw(net, dtype, target.device)
    columns, expected = placed(target.op.mlp_jacobian(*tensors, "tanh"), net, order)
    result = target.op.mlp_jacobian(*tensors, "tanh", columns)
    assert torch.equal(result, expected)
    assert_matches(result, formula.mlp_jacobian(*in_float64(tensors), "tanh", columns))


# --- the same bits on any number of threads ----------------------------------------------------------

THREAD_NETS = [
    Net((784, 40, 3), 17),
    Net((784, 100, 1), 1),
    Net((784, 30, 40, 1), 33, points=3),
    Net((64, 300, 200, 1), 3),
    Net((10, 200, 256, 1), 33),
    Net((2, 20, 1), 2000),
    Net((3, 700, 500, 1), 1),
    Net((129, 131, 137, 5), 70, biases=False),
    Net((2, 20, 1), 100, points=64),
    Net((10, 100, 60, 1), 200),
    Net((64, 128, 3), 150),
    Net((20, 64, 64, 2), 70, points=2),
]


def digests() -> list[str]:
    found = []
    for seed, (net, dtype) in enumerate(itertools.product(THREAD_NETS, (F64, F32))):
        result = torch.ops.llr.mlp_jacobian(*draw(net, dtype, seed=seed), "tanh")
        found.append(hashlib.sha256(result.numpy().tobytes()).hexdigest())
    return found


@pytest.mark.usefixtures("threads")
def test_bits_do_not_depend_on_threads():
    torch.set_num_threads(1)
    expected = digests()
    for count in (2, 3, 5, 8):
        torch.set_num_threads(count)
        assert digests() == expected, f"{count} threads"


@pytest.mark.skipif("OMP_NUM_THREADS" in os.environ, reason="OMP_NUM_THREADS is set for this run")
@pytest.mark.usefixtures("threads")
def test_bits_in_a_process_of_one_thread():
    code = "import json; from operators.test_jacobian import digests; print(json.dumps(digests()))"
    torch.set_num_threads(4)
    run = run_python(code, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == digests()

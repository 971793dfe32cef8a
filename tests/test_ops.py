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
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    ACTIVATIONS,
    Net,
    Tensors,
    assert_matches,
    draw,
    loop_jacobian,
    run_python,
    run_tests_at,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from llr import _ops, reference

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

OP = torch.ops.llr
F64, F32 = torch.float64, torch.float32
# What torch warns of when its own parts use each other.
torch_itself = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning",
    "ignore:.*torch.jit:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)
both_dtypes = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])


def name(value: object) -> str:
    """A short test id for a net or its sizes."""
    if isinstance(value, Net):
        biases = "" if value.biases is True else "-b" + "".join(str(int(b)) for b in value.has_bias)
        points = "" if value.points is None else f"-B{value.points}{'x' * value.own_x}"
        return "-".join(map(str, value.widths)) + f"-n{value.n}{biases}{points}"
    return str(value)


def check(
    net: Net, activation: str = "tanh", dtype: torch.dtype = F64, device: str = "cpu"
) -> Tensor:
    tensors = draw(net, dtype, device)
    result = OP.mlp_jacobian(*tensors, activation)
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
def test_every_activation_at_every_depth(activation, widths, dtype, device):
    check(Net(widths, n=7), activation, dtype, device)


@both_dtypes
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_in_every_place(width, dtype, device):
    other = (width + 7) % 16 + 1
    for widths in [(width, 3, 2), (4, width, 2), (2, width, other, 1), (2, other, width, 3)]:
        check(Net(widths, n=2), "tanh", dtype, device)
    if width <= 34 or width == 130:
        check(Net((4, 3, width), n=1), "tanh", dtype, device)


@both_dtypes
@pytest.mark.parametrize("outputs", [1, 2, 3, 10])
@pytest.mark.parametrize("n", [0, 1, 2, 17, 33, 70])
def test_every_number_of_samples_and_outputs(n, outputs, dtype, device):
    result = check(Net((5, 19, outputs), n), "sigmoid", dtype, device)
    assert result.shape == (n, outputs, 5 * 19 + 19 + 19 * outputs + outputs)


@both_dtypes
@pytest.mark.parametrize("biases", BIASES, ids=lambda b: "".join(str(int(v)) for v in b))
def test_biases_on_and_off(biases, dtype, device):
    check(Net((3, 6, 7, 2), 17, biases), "silu", dtype, device)


@both_dtypes
@pytest.mark.parametrize("own_x", [False, True])
@pytest.mark.parametrize("points", [0, 1, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 17, 33])
@pytest.mark.parametrize("widths", [(2, 20, 1), (3, 5, 18, 3), (4, 2)], ids=name)
def test_parameter_points(widths, n, points, own_x, dtype, device):
    has_bias = tuple(layer != 1 for layer in range(len(widths) - 1))
    net = Net(widths, n, has_bias, points, own_x)
    tensors = draw(net, dtype, device)
    result = OP.mlp_jacobian(*tensors, "tanh")
    assert result.shape[:3] == (points, n, widths[-1])
    if points > 0:
        assert_matches(result, loop_jacobian(*tensors, "tanh"))


@both_dtypes
def test_samples_of_their_own_with_one_set_of_parameters(dtype, device):
    x, weights, biases = draw(Net((3, 8, 2), 5), dtype, device)
    xs = torch.stack([x, -x, 2 * x])
    result = OP.mlp_jacobian(xs, weights, biases, "tanh")
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
def test_any_shape(widths, n, points, own_x, activation, dtype, data):
    layers = len(widths) - 1
    biases = tuple(data.draw(st.lists(st.booleans(), min_size=layers, max_size=layers)))
    net = Net(tuple(widths), n, biases, points, own_x and points is not None)
    tensors = draw(net, dtype)
    exact = reference.mlp_jacobian(*in_float64(tensors), activation)
    assert_matches(OP.mlp_jacobian(*tensors, activation), exact, 1e-13 if dtype == F64 else 1e-6)


def in_float64(tensors: Tensors) -> Tensors:
    x, weights, biases = tensors
    return Tensors(
        x.double(),
        [w.double() for w in weights],
        [None if b is None else b.double() for b in biases],
    )


# Above 2 MB results lie on huge pages, above 4 MB they are written past the caches; weights of more than
# 2^15 numbers are written in strips; signals of more than 8 MB are computed in rounds.
LARGE = [
    Net((5, 64, 1), 700),
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
def test_large_results(net, dtype, device):
    tensors = draw(net, dtype, device)
    result = OP.mlp_jacobian(*tensors, "tanh")
    assert_matches(result, reference.mlp_jacobian(*in_float64(tensors), "tanh"))
    few = tensors._replace(x=tensors.x[..., -2:, :])
    assert_matches(result[..., -2:, :, :], loop_jacobian(*few, "tanh"))


def test_more_outputs_than_are_computed_at_once(device):
    # Only the first layer's columns: the result stays small, the signals do not.
    x, (w0, w1), biases = draw(Net((1, 4096, 300), 2, biases=False), F64, device)
    result = OP.mlp_jacobian(x, [w0, w1], biases, "tanh", [0, -1, -1, -1])
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
def test_layouts(layout, points, dtype, device):
    x, weights, biases = draw(
        Net((6, 20, 9, 2), 17, points=points, own_x=points is not None), dtype
    )
    x = layout(x.to(device))
    weights = [layout(w.to(device)) for w in weights]
    biases = [layout(b.to(device)) for b in biases]
    result = OP.mlp_jacobian(x, weights, biases, "tanh")
    assert_matches(result, loop_jacobian(x, weights, biases, "tanh"))


# A lazy minus sign is a flag on the tensor that only some operations look at.
@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_lazily_negated_arguments(which):
    x, weights, biases = draw(Net((3, 1, 2), 4))
    lazily = lambda t: torch.complex(t * 0, -t).conj().imag  # noqa: E731
    expected = OP.mlp_jacobian(x, weights, biases, "tanh")
    if which == "x":
        x = lazily(x)
    elif which == "weight":
        weights = [lazily(weights[0]), weights[1]]
    else:
        biases = [lazily(biases[0]), biases[1]]
    assert_matches(OP.mlp_jacobian(x, weights, biases, "tanh"), expected)


# --- out= --------------------------------------------------------------------------------------------

GUARD = 64


def guarded(shape: Sequence[int], misalignment: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A view of this shape so many numbers past an aligned address, and all the memory around it."""
    count = torch.Size(shape).numel()
    memory = torch.full((count + 2 * GUARD + 16,), 12345.0, dtype=dtype)
    aligned = -(memory.data_ptr() // memory.element_size()) % 16
    start = aligned + GUARD + misalignment
    return memory[start : start + count].view(*shape), memory


OUT_NETS = [
    Net((3, 6, 2), 5),
    Net((5, 64, 1), 3000),
    Net((2, 7, 3), 7000, biases=False),
    Net((2100, 3, 2), 90),
    Net((33, 190, 3), 70, biases=(True, False)),
    Net((2, 20, 1), 900, points=13),
]


@both_dtypes
@pytest.mark.parametrize("misalignment", range(9))
@pytest.mark.parametrize("net", OUT_NETS, ids=name)
def test_out_writes_its_memory_and_no_other(net, misalignment, dtype):
    tensors = draw(net, dtype)
    expected = OP.mlp_jacobian(*tensors, "tanh")
    view, memory = guarded(expected.shape, misalignment, dtype)
    assert OP.mlp_jacobian.out(*tensors, "tanh", out=view) is None
    assert torch.equal(view, expected)
    view.fill_(12345.0)
    assert (memory == 12345.0).all()


@both_dtypes
@pytest.mark.parametrize("net", [Net((3, 6, 2), 5), Net((5, 64, 1), 1500)], ids=name)
def test_out_that_is_not_contiguous(net, dtype):
    tensors = draw(net, dtype)
    expected = OP.mlp_jacobian(*tensors, "tanh")
    n, q, count = expected.shape
    memory = torch.full((n, q + 2, 2 * count + 1), 12345.0, dtype=dtype)
    view = memory[:, 1:-1, 1::2]
    OP.mlp_jacobian.out(*tensors, "tanh", out=view)
    assert torch.equal(view, expected)
    view.fill_(12345.0)
    assert (memory == 12345.0).all()


def test_out_between_two_numbers():
    # Memory from elsewhere (a file, another library) need not lie at a multiple of 8 bytes.
    run = run_python(
        """
import torch
from llr import _ops
from oracles import Net, draw
tensors = draw(Net((3, 64, 1), 3000))
expected = torch.ops.llr.mlp_jacobian(*tensors, "tanh")
memory = bytearray(expected.numel() * 8 + 64)
for offset in (1, 4, 7):
    out = torch.frombuffer(memory, dtype=torch.float64, count=expected.numel(), offset=offset)
    try:
        torch.ops.llr.mlp_jacobian.out(*tensors, "tanh", out=out.view(expected.shape))
    except RuntimeError as error:
        assert "mlp_jacobian" in str(error), error
    else:
        assert torch.equal(out, expected.flatten()), offset
"""
    )
    assert run.returncode == 0, run.stderr


def test_out_lazily_negated():
    run = run_python(
        """
import torch
from llr import _ops
from oracles import Net, draw
tensors = draw(Net((3, 4, 1)))
expected = torch.ops.llr.mlp_jacobian(*tensors, "tanh")
out = torch.zeros(expected.shape, dtype=torch.complex128).conj().imag
for _ in range(3):
    try:
        torch.ops.llr.mlp_jacobian.out(*tensors, "tanh", out=out)
    except RuntimeError:
        continue
    assert torch.equal(out, expected)
"""
    )
    assert run.returncode == 0, run.stderr


def test_out_tells_autograd_that_it_changed():
    tensors = draw(Net((3, 4, 1)))
    out = torch.ones(5, 1, 21, dtype=F64)
    scale = torch.ones((), dtype=F64, requires_grad=True)
    product = out * scale
    OP.mlp_jacobian.out(*tensors, "tanh", out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


# --- columns -----------------------------------------------------------------------------------------


def placed(full: Tensor, net: Net, order: Sequence[int]) -> tuple[list[int], Tensor]:
    """`columns` for the tensors (0: first weight, 1: first bias, ...) in this order, and what they mean."""
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
def test_columns_in_every_order(net, dtype, device):
    tensors = draw(net, dtype, device)
    full = OP.mlp_jacobian(*tensors, "tanh")
    for order in ORDERS:
        columns, expected = placed(full, net, order)
        assert torch.equal(OP.mlp_jacobian(*tensors, "tanh", columns), expected), order


@both_dtypes
@pytest.mark.parametrize("order", [[4, 0, 5, 1], [2], [5, 4, 2, 1, 0], [0, 1]], ids=name)
def test_columns_of_a_large_result(order, dtype, device):
    net = Net((9, 150, 60, 3), 230, biases=(True, False, True))
    tensors = draw(net, dtype, device)
    columns, expected = placed(OP.mlp_jacobian(*tensors, "tanh"), net, order)
    result = OP.mlp_jacobian(*tensors, "tanh", columns)
    assert torch.equal(result, expected)
    assert_matches(result, reference.mlp_jacobian(*in_float64(tensors), "tanh", columns))


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
]


def digests() -> list[str]:
    found = []
    for seed, (net, dtype) in enumerate(itertools.product(THREAD_NETS, (F64, F32))):
        result = OP.mlp_jacobian(*draw(net, dtype, seed=seed), "tanh")
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
    code = "import json, test_ops; print(json.dumps(test_ops.digests()))"
    torch.set_num_threads(4)
    run = run_python(code, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == digests()


@pytest.mark.slow
def test_every_instruction_level(simd_level):
    if simd_level == _ops.build_info()["simd_running"]:
        pytest.skip("the level of this very run")
    values = (
        "test_every or biases or points or any_shape or large or layouts or out_writes or columns_"
    )
    run = run_tests_at(simd_level, "test_ops.py", values)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


# --- derivatives, torch.compile, vmap ----------------------------------------------------------------


def needing_gradients(net: Net) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Leaves that need gradients, and the operator as a function of them."""
    x, weights, biases = draw(net)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases) if t is not None]

    def call(activation: str, *tensors: Tensor, columns: Sequence[int] | None = None) -> Tensor:
        x, *rest = tensors
        present = iter(rest[len(weights) :])
        restored = [None if b is None else next(present) for b in biases]
        return OP.mlp_jacobian(x, rest[: len(weights)], restored, activation, columns)

    return leaves, call


GRADIENT_NETS = [
    Net((2, 3, 2), 2),
    Net((2, 3, 2, 1), 2, biases=(True, False, False)),
    Net((2, 2, 1), 2, points=2, own_x=True),
    Net((2, 2, 1), 1, biases=False, points=2),
]


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_gradients_of_every_activation(activation):
    leaves, call = needing_gradients(Net((2, 3, 2), 2))
    assert gradcheck(lambda *t: call(activation, *t), leaves)
    assert gradgradcheck(lambda *t: call(activation, *t), leaves)


@pytest.mark.parametrize("net", GRADIENT_NETS, ids=name)
def test_gradients_of_every_kind_of_net(net):
    leaves, call = needing_gradients(net)
    assert gradcheck(lambda *t: call("tanh", *t), leaves)


def test_gradients_with_columns():
    leaves, call = needing_gradients(Net((2, 3, 2), 2))
    assert gradcheck(lambda *t: call("tanh", *t, columns=[6, -1, 0, -1]), leaves)


def test_no_graph_where_none_is_asked_for():
    leaves, call = needing_gradients(Net((2, 3, 2), 2))
    assert call("tanh", *leaves).requires_grad
    with torch.no_grad():
        assert not call("tanh", *leaves).requires_grad
    with torch.inference_mode():
        assert call("tanh", *leaves).is_inference()


def opcheck_arguments() -> dict[str, tuple[object, ...]]:
    one = draw(Net((3, 4, 2)))
    grads = draw(Net((3, 4, 2)))
    for t in (grads.x, *grads.weights, *grads.biases):
        t.requires_grad_()
    return {
        "plain": (*one, "tanh"),
        "gradients": (*grads, "sigmoid"),
        "float32": (*draw(Net((3, 4, 2)), F32), "relu"),
        "no biases": (*draw(Net((3, 4, 2), biases=False)), "sin"),
        "points": (*draw(Net((3, 4, 2), points=2)), "gelu"),
        "own samples": (*draw(Net((3, 4, 2), points=2, own_x=True)), "erf"),
        "columns": (*one, "tanh", [8, -1, 0, 20]),
        "no samples": (*draw(Net((3, 4, 2), 0)), "tanh"),
    }


@torch_itself
@pytest.mark.parametrize("case", list(opcheck_arguments()))
def test_opcheck(case):
    arguments = opcheck_arguments()[case]
    opcheck(OP.mlp_jacobian.default, arguments)


@torch_itself
def test_opcheck_out():
    tensors = draw(Net((3, 4, 2)))
    opcheck(OP.mlp_jacobian.out, (*tensors, "tanh"), {"out": torch.empty(5, 2, 26, dtype=F64)})


@torch_itself
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck_of_lists(gradients):
    x, weights, biases = draw(Net((3, 4, 2), biases=(False, True)))
    weights = [w.requires_grad_(gradients) for w in weights]
    opcheck(OP._mlp_jacobian.default, (x, weights, [biases[1]], [False, True], "tanh"))


def test_opcheck_first_nonfinite():
    # Its result is a number that hangs on the data, which a fake tensor has not: the two tests with fake
    # tensors cannot apply.
    utilities = ("test_schema", "test_autograd_registration")
    opcheck(OP.first_nonfinite.default, ([torch.ones(3)],), test_utils=utilities)


def compiled(function: Callable[..., Tensor], **options: bool) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.slow
@torch_itself
def test_compile():
    x, weights, biases = draw(Net((3, 4, 2)))
    weights = [w.requires_grad_() for w in weights]
    function = lambda x, w: OP.mlp_jacobian(x.sin(), [w, weights[1]], biases, "tanh").exp()  # noqa: E731
    expected, result = function(x, weights[0]), compiled(function)(x, weights[0])
    assert_matches(result, expected)
    assert_matches(
        torch.autograd.grad(result.sum(), weights[0])[0],
        torch.autograd.grad(expected.sum(), weights[0])[0],
    )


@pytest.mark.slow
@torch_itself
def test_compile_with_any_number_of_samples():
    _, weights, biases = draw(Net((3, 4, 2)))
    function = compiled(lambda x: 2 * _ops.mlp_jacobian(x, weights, biases, "tanh"), dynamic=True)
    for n in (4, 5, 9):
        x = torch.randn(n, 3, dtype=F64)
        assert_matches(function(x), 2 * OP.mlp_jacobian(x, weights, biases, "tanh"))


@pytest.mark.slow
@torch_itself
def test_compile_out():
    tensors = draw(Net((3, 4, 2)))

    def function(x: Tensor, out: Tensor) -> Tensor:
        OP.mlp_jacobian.out(x, tensors.weights, tensors.biases, "tanh", out=out)
        return 2 * out

    out, expected = torch.zeros(5, 2, 26, dtype=F64), OP.mlp_jacobian(*tensors, "tanh")
    assert_matches(compiled(function)(tensors.x, out), 2 * expected)
    assert torch.equal(out, expected)


def expected_by_loop(
    function: Callable[..., Tensor], arguments: Sequence[Tensor], in_dims: Sequence[int | None]
) -> Tensor:
    size = next(a.shape[d] for a, d in zip(arguments, in_dims, strict=True) if d is not None)
    return torch.stack(
        [
            function(
                *(
                    a if d is None else a.select(d, i)
                    for a, d in zip(arguments, in_dims, strict=True)
                )
            )
            for i in range(size)
        ]
    )


# Which of x, w0, w1, b0, b1 carry the vmapped dimension, and where.
IN_DIMS = {
    "x": (0, None, None, None, None),
    "x behind": (2, None, None, None, None),
    "one weight": (None, 0, None, None, None),
    "weights": (None, 0, 1, None, None),
    "parameters": (None, 0, 0, 0, 0),
    "parameters behind": (None, 2, 1, 1, 1),
    "a bias": (None, None, None, 0, None),
    "all": (0, 0, 0, 0, 0),
    "all anywhere": (1, 2, 0, 1, 0),
}


@pytest.mark.parametrize("points", ["none", "parameters", "parameters and x", "x"])
@pytest.mark.parametrize("dims", IN_DIMS.values(), ids=list(IN_DIMS))
def test_vmap(dims, points):
    size = 4
    generator = torch.Generator().manual_seed(3)
    batched_x = points in ("parameters and x", "x")
    batched_w = points in ("parameters", "parameters and x")
    shapes = [(5, 3), (6, 3), (2, 6), (6,), (2,)]
    arguments = []
    for i, (shape, dim) in enumerate(zip(shapes, dims, strict=True)):
        shape = ((3,) if (batched_x if i == 0 else batched_w) else ()) + shape
        whole = shape if dim is None else (*shape[:dim], size, *shape[dim:])
        arguments.append(torch.randn(whole, generator=generator, dtype=F64))

    def function(x: Tensor, w0: Tensor, w1: Tensor, b0: Tensor, b1: Tensor) -> Tensor:
        return OP.mlp_jacobian(x, [w0, w1], [b0, b1], "tanh")

    result = torch.vmap(function, in_dims=dims)(*arguments)
    assert_matches(result, expected_by_loop(function, arguments, dims))


def test_vmap_of_vmap():
    x, weights, biases = draw(Net((3, 6, 2)))
    xs = torch.stack([x, 2 * x])
    ws = torch.stack([weights[0] * k for k in range(4)])
    function = lambda x, w: OP.mlp_jacobian(x, [w, weights[1]], [biases[0], None], "tanh")  # noqa: E731
    result = torch.vmap(torch.vmap(function, in_dims=(None, 0)), in_dims=(0, None))(xs, ws)
    assert result.shape[:3] == (2, 4, 5)
    for i, j in itertools.product(range(2), range(4)):
        assert_matches(result[i, j], function(xs[i], ws[j]))


def test_vmap_one_sample_at_a_time():
    x, weights, biases = draw(Net((3, 6, 2)))
    result = torch.vmap(lambda s: OP.mlp_jacobian(s[None], weights, biases, "tanh")[0])(x)
    assert_matches(result, OP.mlp_jacobian(x, weights, biases, "tanh"))
    with pytest.raises(RuntimeError, match=r"expected \(n, d\)"):
        torch.vmap(lambda s: OP.mlp_jacobian(s, weights, biases, "tanh"))(x)


def test_vmap_with_gradients():
    x, weights, biases = draw(Net((3, 6, 2)))
    xs, weight = torch.stack([x, 2 * x]), weights[0].requires_grad_()

    def function(x: Tensor) -> Tensor:
        return OP.mlp_jacobian(x, [weight, weights[1]], biases, "tanh")

    vmapped, looped = torch.vmap(function)(xs), torch.stack([function(s) for s in xs])
    assert_matches(
        torch.autograd.grad(vmapped.pow(2).sum(), weight)[0],
        torch.autograd.grad(looped.pow(2).sum(), weight)[0],
    )


def first_weight() -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A weight, and the result's sum of squares as a function of it: natively and in torch operations."""
    x, (weight, last), biases = draw(Net((3, 6, 2)))
    return (
        weight,
        lambda w: OP.mlp_jacobian(x, [w, last], biases, "tanh").pow(2).sum(),
        lambda w: reference.mlp_jacobian(x, [w, last], biases, "tanh").pow(2).sum(),
    )


TRANSFORMS: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "grad": torch.func.grad,
    "jacrev": torch.func.jacrev,
    "jvp": lambda f: lambda w: torch.func.jvp(f, (w,), (torch.ones_like(w),))[1],
    "jacfwd": torch.func.jacfwd,
    "hessian": torch.func.hessian,
    "vmap of grad": lambda f: lambda w: torch.vmap(torch.func.grad(f))(torch.stack([w, 2 * w])),
}


def unless_refused(compute: Callable[[], Tensor]) -> Tensor | None:
    """The result, or None where the operator refuses under its own name: both are fine, silence is not."""
    try:
        return compute()
    except RuntimeError as refusal:
        if "mlp_jacobian" not in str(refusal):
            raise
        return None


@torch_itself
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=list(TRANSFORMS))
def test_function_transforms_are_right_or_refused(transform):
    weight, native, plain = first_weight()
    result = unless_refused(lambda: transform(native)(weight))
    if result is not None:
        assert_matches(result, transform(plain)(weight))


@torch_itself
def test_forward_mode_is_right_or_refused():
    weight, native, plain = first_weight()

    def tangent(function: Callable[[Tensor], Tensor]) -> Tensor:
        found = torch.autograd.forward_ad.unpack_dual(function(dual)).tangent
        return torch.zeros(()) if found is None else found

    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, torch.ones_like(weight))
        result = unless_refused(lambda: tangent(native))
        if result is not None:
            assert_matches(result, tangent(plain))


# --- bad arguments -----------------------------------------------------------------------------------

X, (W0, W1), (B0, B1) = draw(Net((3, 4, 2)))
OUT = torch.empty(5, 2, 26, dtype=F64)
FAR = torch.empty(1, dtype=F64)
SQUARE = FAR.expand(2**31, 2**31)  # 2^62 numbers in 8 bytes of memory

BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "activation": (
        (X, [W0, W1], [B0, B1], "swish"),
        "unknown activation 'swish'; expected one of identity, tanh, sigmoid, relu, softplus, gelu",
    ),
    "trailing dimension": (
        (X[:, :2], [W0, W1], [B0, B1], "tanh"),
        r"weights\[0\] has shape \[4, 3\]; expected 2 columns, the width of x",
    ),
    "layers do not fit": (
        (X, [W0, W0], [B0, B0], "tanh"),
        r"weights\[1\] has shape \[4, 3\]; expected 4 columns, the width of weights\[0\]",
    ),
    "integers": ((X.long(), [W0, W1], [B0, B1], "tanh"), "x is Long; expected float32 or float64"),
    "half": ((X.half(), [W0.half(), W1.half()], [None] * 2, "tanh"), "x is Half; expected float32"),
    "complex": ((X.cfloat(), [W0, W1], [None] * 2, "tanh"), "x is ComplexFloat; expected float32"),
    "weight dtype": (
        (X, [W0, W1.float()], [B0, B1], "tanh"),
        r"weights\[1\] is Float but x is Double; expected one dtype",
    ),
    "bias dtype": (
        (X.float(), [W0.float(), W1.float()], [B0, None], "tanh"),
        r"biases\[0\] is Double but x is Float; expected one dtype",
    ),
    "weight device": (
        (X, [W0, W1.to("meta")], [B0, B1], "tanh"),
        r"weights\[1\] is on meta but x is on cpu; expected one device",
    ),
    "bias device": (
        (X, [W0, W1], [B0.to("meta"), B1], "tanh"),
        r"biases\[0\] is on meta but x is on cpu; expected one device",
    ),
    "1-D x": ((X[0], [W0, W1], [B0, B1], "tanh"), r"x has shape \[3\]; expected \(n, d\)"),
    "4-D x": ((X[None, None], [W0, W1], [B0, B1], "tanh"), r"x has shape \[1, 1, 5, 3\]; expected"),
    "no inputs": (
        (X[:, :0], [W0[:, :0], W1], [B0, B1], "tanh"),
        r"x has shape \[5, 0\]; expected at least one input",
    ),
    "no layers": ((X, [], [], "tanh"), "no weights; expected one per layer"),
    "no neurons": (
        (X, [W0[:0], W1[:, :0]], [None, B1], "tanh"),
        r"weights\[0\] has shape \[0, 3\]; expected at least one neuron",
    ),
    "1-D weight": (
        (X, [W0[0]], [None], "tanh"),
        r"weights\[0\] has shape \[3\]; expected \(out, in\)",
    ),
    "bias shape": (
        (X, [W0, W1], [B1, B1], "tanh"),
        r"biases\[0\] has shape \[2\]; expected \(4\) to go with weights\[0\] of shape \[4, 3\]",
    ),
    "number of biases": ((X, [W0, W1], [B0], "tanh"), "2 weights and 1 biases; expected one bias"),
    "points of x": (
        (X.expand(3, 5, 3), [W0.expand(2, 4, 3), W1.expand(2, 2, 4)], [None] * 2, "tanh"),
        r"x has shape \[3, 5, 3\] but there are 2 parameter points",
    ),
    "points of a weight": (
        (X, [W0.expand(2, 4, 3), W1], [None] * 2, "tanh"),
        r"weights\[1\] has shape \[2, 4\]; expected \(2, out, in\) as weights\[0\]",
    ),
    "points of a bias": (
        (X, [W0.expand(2, 4, 3), W1.expand(2, 2, 4)], [B0, None], "tanh"),
        r"biases\[0\] has shape \[4\]; expected \(2, 4\) to go with weights\[0\] of shape \[2, 4, 3\]",
    ),
    "number of columns": (
        (X, [W0, W1], [B0, B1], "tanh", [0, 12, 16]),
        "columns has 3 entries; expected 4",
    ),
    "gap": (
        (X, [W0, W1], [B0, B1], "tanh", [0, 13, 17, 25]),
        "without gap or overlap; a tensor of 4 numbers starts at 13, expected 12",
    ),
    "overlap": (
        (X, [W0, W1], [B0, B1], "tanh", [0, 11, 15, 23]),
        "without gap or overlap; a tensor of 4 numbers starts at 11, expected 12",
    ),
    "column of no bias": (
        (X, [W0, W1], [None, B1], "tanh", [0, 12, 16, 24]),
        "columns places the bias of layer 0, which has none; expected -1",
    ),
    "negative column": ((X, [W0, W1], [B0, B1], "tanh", [-2, 0, 4, 12]), r"columns\[0\] is -2"),
    "no columns": ((X, [W0, W1], [B0, B1], "tanh", [-1] * 4), "every tensor is left out"),
    "too many samples": (
        (
            FAR.expand(2**40, 3),
            [FAR.expand(2**20, 3), FAR.expand(2**20, 2**20)],
            [None] * 2,
            "tanh",
        ),
        r"a result of shape \[1099511627776, 1048576, 1099514773504\] has more than 2\^63 bytes",
    ),
    "too many columns": (
        (FAR.expand(1, 2**31), [SQUARE] * 3, [None] * 3, "tanh"),
        r"more than 2\^63 bytes",
    ),
    "columns that wrap to zero": (
        (FAR.expand(1, 2**31), [SQUARE] * 4, [None] * 4, "tanh"),
        r"more than 2\^63 bytes",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_arguments(case):
    arguments, message = BAD[case]
    with pytest.raises(RuntimeError, match=message):
        OP.mlp_jacobian(*arguments)


BAD_OUT: dict[str, tuple[Callable[[], Tensor], str]] = {
    "shape": (
        lambda: torch.empty(5, 2, 25, dtype=F64),
        r"out has shape \[5, 2, 25\]; expected \[5, 2, 26\]",
    ),
    "dtype": (lambda: torch.empty(5, 2, 26), "out is Float on cpu; expected Double on cpu"),
    "device": (
        lambda: torch.empty(5, 2, 26, dtype=F64, device="meta"),
        "out is Double on meta; expected Double on cpu",
    ),
    "itself": (lambda: FAR.expand(5, 2, 26), "more than one element of the written-to tensor"),
}


@pytest.mark.parametrize("case", list(BAD_OUT))
def test_bad_out(case):
    make, message = BAD_OUT[case]
    with pytest.raises(RuntimeError, match=message):
        OP.mlp_jacobian.out(X, [W0, W1], [B0, B1], "tanh", out=make())


@pytest.mark.parametrize("which", range(5))
def test_out_that_overlaps_an_argument(which):
    arguments = [X, W0, W1, B0, B1]
    memory = torch.zeros(OUT.numel() + arguments[which].numel() - 1, dtype=F64)
    out = memory[: OUT.numel()].view(OUT.shape)
    inside = memory[OUT.numel() - 1 :].view(arguments[which].shape).copy_(arguments[which])
    arguments[which] = inside
    x, w0, w1, b0, b1 = arguments
    with pytest.raises(RuntimeError, match=r"memory overlap|single memory location"):
        OP.mlp_jacobian.out(x, [w0, w1], [b0, b1], "tanh", out=out)


# --- first_nonfinite ---------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("length", range(34))
def test_first_nonfinite_at_every_position(length, dtype):
    clean = torch.linspace(-3, 3, length, dtype=dtype)
    assert OP.first_nonfinite([clean]) == -1
    for position, bad in itertools.product(
        range(length), [float("nan"), float("inf"), -float("inf")]
    ):
        spoiled = clean.clone()
        spoiled[position] = bad
        assert OP.first_nonfinite([spoiled]) == 0
        assert OP.first_nonfinite([clean, torch.ones(3), spoiled, spoiled]) == 2


@both_dtypes
def test_first_nonfinite_at_the_edges_of_the_range(dtype):
    limits = torch.finfo(dtype)
    for value in (limits.max, -limits.max, limits.tiny, limits.smallest_normal / 8, -0.0, 0.0):
        assert OP.first_nonfinite([torch.full((33,), value, dtype=dtype)]) == -1
    # An infinity and its opposite, which a sum would cancel or make NaN of.
    assert OP.first_nonfinite([torch.tensor([float("inf"), -float("inf")], dtype=dtype)]) == 0


@both_dtypes
def test_first_nonfinite_sees_what_a_view_shows(dtype):
    large = torch.full((9, 11), float("nan"), dtype=dtype)
    view = large[1::2, 2::3].fill_(1.0)
    assert OP.first_nonfinite([view, view.T, large.flatten()[:0]]) == -1
    assert OP.first_nonfinite([view, large.T]) == 1
    assert OP.first_nonfinite([torch.ones(1, dtype=dtype).expand(1000, 1000)]) == -1


def test_first_nonfinite_refuses_other_dtypes():
    with pytest.raises(RuntimeError, match=r"tensors\[1\] is Long; expected float32 or float64"):
        OP.first_nonfinite([X, torch.ones(3, dtype=torch.long)])


def test_first_nonfinite_of_nothing():
    assert _ops.first_nonfinite([]) == -1

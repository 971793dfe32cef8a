"""The operators under autograd, opcheck, torch.compile, vmap and torch.func."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from helpers.oracles import ACTIVATIONS, Net, assert_matches, draw, name
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from llr.operators import _ops, formula

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

OP = torch.ops.llr
F64, F32 = torch.float64, torch.float32
# Warnings caused by torch itself.
torch_itself = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning",
    "ignore:.*torch.jit:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)


def needing_gradients(net: Net, device: str) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Leaves that need gradients, and the operator as a function of them."""
    x, weights, biases = draw(net, F64, device)
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
def test_gradients_of_every_activation(activation, device):
    leaves, call = needing_gradients(Net((2, 3, 2), 2), device)
    assert gradcheck(lambda *t: call(activation, *t), leaves)
    assert gradgradcheck(lambda *t: call(activation, *t), leaves)


@pytest.mark.parametrize("net", GRADIENT_NETS, ids=name)
def test_gradients_of_every_kind_of_net(net, device):
    leaves, call = needing_gradients(net, device)
    assert gradcheck(lambda *t: call("tanh", *t), leaves)


def test_gradients_with_columns(device):
    leaves, call = needing_gradients(Net((2, 3, 2), 2), device)
    assert gradcheck(lambda *t: call("tanh", *t, columns=[6, -1, 0, -1]), leaves)


def test_no_graph_where_none_is_asked_for(device):
    leaves, call = needing_gradients(Net((2, 3, 2), 2), device)
    assert call("tanh", *leaves).requires_grad
    with torch.no_grad():
        assert not call("tanh", *leaves).requires_grad
    with torch.inference_mode():
        assert call("tanh", *leaves).is_inference()


def opcheck_arguments(device: str) -> dict[str, tuple[object, ...]]:
    one = draw(Net((3, 4, 2)), F64, device)
    grads = draw(Net((3, 4, 2)), F64, device)
    for t in (grads.x, *grads.weights, *grads.biases):
        t.requires_grad_()
    return {
        "plain": (*one, "tanh"),
        "gradients": (*grads, "sigmoid"),
        "float32": (*draw(Net((3, 4, 2)), F32, device), "relu"),
        "no biases": (*draw(Net((3, 4, 2), biases=False), F64, device), "sin"),
        "points": (*draw(Net((3, 4, 2), points=2), F64, device), "gelu"),
        "own samples": (*draw(Net((3, 4, 2), points=2, own_x=True), F64, device), "erf"),
        "columns": (*one, "tanh", [8, -1, 0, 20]),
        "no samples": (*draw(Net((3, 4, 2), 0), F64, device), "tanh"),
    }


@torch_itself
@pytest.mark.parametrize("case", list(opcheck_arguments("cpu")))
def test_opcheck(case, device):
    arguments = opcheck_arguments(device)[case]
    opcheck(OP.mlp_jacobian.default, arguments)


@torch_itself
def test_opcheck_out(device):
    tensors = draw(Net((3, 4, 2)), F64, device)
    out = torch.empty(5, 2, 26, dtype=F64, device=device)
    opcheck(OP.mlp_jacobian.out, (*tensors, "tanh"), {"out": out})


def test_opcheck_first_nonfinite():
    # The result is a number that depends on the data, which fake tensors do not have. So the two tests with
    # fake tensors are left out.
    utilities = ("test_schema", "test_autograd_registration")
    opcheck(OP.first_nonfinite.default, ([torch.ones(3)],), test_utils=utilities)


def compiled(function: Callable[..., Tensor], **options: bool) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.slow
@torch_itself
def test_compile(device):
    x, weights, biases = draw(Net((3, 4, 2)), F64, device)
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
def test_compile_with_any_number_of_samples(device):
    _, weights, biases = draw(Net((3, 4, 2)), F64, device)
    function = compiled(lambda x: 2 * _ops.mlp_jacobian(x, weights, biases, "tanh"), dynamic=True)
    for n in (4, 5, 9):
        x = torch.randn(n, 3, dtype=F64, device=device)
        assert_matches(function(x), 2 * OP.mlp_jacobian(x, weights, biases, "tanh"))


@pytest.mark.slow
@torch_itself
def test_compile_out(device):
    tensors = draw(Net((3, 4, 2)), F64, device)

    def function(x: Tensor, out: Tensor) -> Tensor:
        OP.mlp_jacobian.out(x, tensors.weights, tensors.biases, "tanh", out=out)
        return 2 * out

    out = torch.zeros(5, 2, 26, dtype=F64, device=device)
    expected = OP.mlp_jacobian(*tensors, "tanh")
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
def test_vmap(dims, points, device):
    size = 4
    generator = torch.Generator().manual_seed(3)
    batched_x = points in ("parameters and x", "x")
    batched_w = points in ("parameters", "parameters and x")
    shapes = [(5, 3), (6, 3), (2, 6), (6,), (2,)]
    arguments = []
    for i, (shape, dim) in enumerate(zip(shapes, dims, strict=True)):
        shape = ((3,) if (batched_x if i == 0 else batched_w) else ()) + shape
        whole = shape if dim is None else (*shape[:dim], size, *shape[dim:])
        drawn = torch.randn(whole, generator=generator, dtype=F64)
        arguments.append(drawn.to(device))

    def function(x: Tensor, w0: Tensor, w1: Tensor, b0: Tensor, b1: Tensor) -> Tensor:
        return OP.mlp_jacobian(x, [w0, w1], [b0, b1], "tanh")

    result = torch.vmap(function, in_dims=dims)(*arguments)
    assert_matches(result, expected_by_loop(function, arguments, dims))


def test_vmap_of_vmap(device):
    x, weights, biases = draw(Net((3, 6, 2)), F64, device)
    xs = torch.stack([x, 2 * x])
    ws = torch.stack([weights[0] * k for k in range(4)])
    function = lambda x, w: OP.mlp_jacobian(x, [w, weights[1]], [biases[0], None], "tanh")  # noqa: E731
    result = torch.vmap(torch.vmap(function, in_dims=(None, 0)), in_dims=(0, None))(xs, ws)
    assert result.shape[:3] == (2, 4, 5)
    for i, j in itertools.product(range(2), range(4)):
        assert_matches(result[i, j], function(xs[i], ws[j]))


def test_vmap_one_sample_at_a_time(device):
    x, weights, biases = draw(Net((3, 6, 2)), F64, device)
    result = torch.vmap(lambda s: OP.mlp_jacobian(s[None], weights, biases, "tanh")[0])(x)
    assert_matches(result, OP.mlp_jacobian(x, weights, biases, "tanh"))
    with pytest.raises(RuntimeError, match=r"expected \(n, d\)"):
        torch.vmap(lambda s: OP.mlp_jacobian(s, weights, biases, "tanh"))(x)


def test_vmap_with_gradients(device):
    x, weights, biases = draw(Net((3, 6, 2)), F64, device)
    xs, weight = torch.stack([x, 2 * x]), weights[0].requires_grad_()

    def function(x: Tensor) -> Tensor:
        return OP.mlp_jacobian(x, [weight, weights[1]], biases, "tanh")

    vmapped, looped = torch.vmap(function)(xs), torch.stack([function(s) for s in xs])
    assert_matches(
        torch.autograd.grad(vmapped.pow(2).sum(), weight)[0],
        torch.autograd.grad(looped.pow(2).sum(), weight)[0],
    )


def first_weight(
    device: str,
) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A weight, and functions of it: the result's sum of squares, natively and in torch operations."""
    x, (weight, last), biases = draw(Net((3, 6, 2)), F64, device)
    return (
        weight,
        lambda w: OP.mlp_jacobian(x, [w, last], biases, "tanh").pow(2).sum(),
        lambda w: formula.mlp_jacobian(x, [w, last], biases, "tanh").pow(2).sum(),
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
    """The result, or None if the operator refuses with its name. Any other error fails the test."""
    try:
        return compute()
    except RuntimeError as refusal:
        if "mlp_jacobian" not in str(refusal):
            raise
        return None


@torch_itself
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=list(TRANSFORMS))
def test_function_transforms_are_right_or_refused(transform, device):
    weight, native, plain = first_weight(device)
    result = unless_refused(lambda: transform(native)(weight))
    if result is not None:
        assert_matches(result, transform(plain)(weight))


@torch_itself
def test_forward_mode_is_right_or_refused(device):
    weight, native, plain = first_weight(device)

    def tangent(function: Callable[[Tensor], Tensor]) -> Tensor:
        found = torch.autograd.forward_ad.unpack_dual(function(dual)).tangent
        return weight.new_zeros(()) if found is None else found

    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, torch.ones_like(weight))
        result = unless_refused(lambda: tangent(native))
        if result is not None:
            assert_matches(result, tangent(plain))

"""What the operators refuse, and the search for what is not finite."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from oracles import Net, draw
from torch import Tensor

from llr import _ops

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

OP = torch.ops.llr
F64, F32 = torch.float64, torch.float32
both_dtypes = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])

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
        r"out is (Double )?on meta; expected (Double on )?cpu",
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

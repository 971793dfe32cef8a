"""Arguments that the operators refuse, and the search for numbers that are not finite."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from helpers.oracles import Net, draw
from torch import Tensor

from llr.operators import _ops

pytestmark = pytest.mark.skipif(not _ops.NATIVE, reason=_ops.REASON)

F64, F32 = torch.float64, torch.float32
both_dtypes = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])


def bad_arguments(device: str) -> dict[str, tuple[tuple[object, ...], str]]:
    """Calls that are refused, and the messages, on this device."""
    x, (w0, w1), (b0, b1) = draw(Net((3, 4, 2)), F64, device)
    here = str(x.device)
    far = torch.empty(1, dtype=F64, device=device)
    square = far.expand(2**31, 2**31)  # 2^62 numbers in 8 bytes of memory
    return {
        "activation": (
            (x, [w0, w1], [b0, b1], "swish"),
            "unknown activation 'swish'; expected one of identity, tanh, sigmoid, relu, softplus, gelu",
        ),
        "trailing dimension": (
            (x[:, :2], [w0, w1], [b0, b1], "tanh"),
            r"weights\[0\] has shape \[4, 3\]; expected 2 columns, the width of x",
        ),
        "layers do not fit": (
            (x, [w0, w0], [b0, b0], "tanh"),
            r"weights\[1\] has shape \[4, 3\]; expected 4 columns, the width of weights\[0\]",
        ),
        "integers": (
            (x.long(), [w0, w1], [b0, b1], "tanh"),
            "x is Long; expected float32 or float64",
        ),
        "half": (
            (x.half(), [w0.half(), w1.half()], [None] * 2, "tanh"),
            "x is Half; expected float32",
        ),
        "complex": (
            (x.cfloat(), [w0, w1], [None] * 2, "tanh"),
            "x is ComplexFloat; expected float32",
        ),
        "weight dtype": (
            (x, [w0, w1.float()], [b0, b1], "tanh"),
            r"weights\[1\] is Float but x is Double; expected one dtype",
        ),
        "bias dtype": (
            (x.float(), [w0.float(), w1.float()], [b0, None], "tanh"),
            r"biases\[0\] is Double but x is Float; expected one dtype",
        ),
        "weight device": (
            (x, [w0, w1.to("meta")], [b0, b1], "tanh"),
            rf"weights\[1\] is on meta but x is on {here}; expected one device",
        ),
        "bias device": (
            (x, [w0, w1], [b0.to("meta"), b1], "tanh"),
            rf"biases\[0\] is on meta but x is on {here}; expected one device",
        ),
        "1-D x": ((x[0], [w0, w1], [b0, b1], "tanh"), r"x has shape \[3\]; expected \(n, d\)"),
        "4-D x": (
            (x[None, None], [w0, w1], [b0, b1], "tanh"),
            r"x has shape \[1, 1, 5, 3\]; expected",
        ),
        "no inputs": (
            (x[:, :0], [w0[:, :0], w1], [b0, b1], "tanh"),
            r"x has shape \[5, 0\]; expected at least one input",
        ),
        "no layers": ((x, [], [], "tanh"), "no weights; expected one per layer"),
        "no neurons": (
            (x, [w0[:0], w1[:, :0]], [None, b1], "tanh"),
            r"weights\[0\] has shape \[0, 3\]; expected at least one neuron",
        ),
        "1-D weight": (
            (x, [w0[0]], [None], "tanh"),
            r"weights\[0\] has shape \[3\]; expected \(out, in\)",
        ),
        "bias shape": (
            (x, [w0, w1], [b1, b1], "tanh"),
            r"biases\[0\] has shape \[2\]; expected \(4\) to go with weights\[0\] of shape \[4, 3\]",
        ),
        "number of biases": (
            (x, [w0, w1], [b0], "tanh"),
            "2 weights and 1 biases; expected one bias",
        ),
        "points of x": (
            (x.expand(3, 5, 3), [w0.expand(2, 4, 3), w1.expand(2, 2, 4)], [None] * 2, "tanh"),
            r"x has shape \[3, 5, 3\] but there are 2 parameter points",
        ),
        "points of a weight": (
            (x, [w0.expand(2, 4, 3), w1], [None] * 2, "tanh"),
            r"weights\[1\] has shape \[2, 4\]; expected \(2, out, in\) as weights\[0\]",
        ),
        "points of a bias": (
            (x, [w0.expand(2, 4, 3), w1.expand(2, 2, 4)], [b0, None], "tanh"),
            r"biases\[0\] has shape \[4\]; expected \(2, 4\) to go with weights\[0\] of shape \[2, 4, 3\]",
        ),
        "number of columns": (
            (x, [w0, w1], [b0, b1], "tanh", [0, 12, 16]),
            "columns has 3 entries; expected 4",
        ),
        "gap": (
            (x, [w0, w1], [b0, b1], "tanh", [0, 13, 17, 25]),
            "without gap or overlap; a tensor of 4 numbers starts at 13, expected 12",
        ),
        "overlap": (
            (x, [w0, w1], [b0, b1], "tanh", [0, 11, 15, 23]),
            "without gap or overlap; a tensor of 4 numbers starts at 11, expected 12",
        ),
        "column of no bias": (
            (x, [w0, w1], [None, b1], "tanh", [0, 12, 16, 24]),
            "columns places the bias of layer 0, which has none; expected -1",
        ),
        "negative column": ((x, [w0, w1], [b0, b1], "tanh", [-2, 0, 4, 12]), r"columns\[0\] is -2"),
        "no columns": ((x, [w0, w1], [b0, b1], "tanh", [-1] * 4), "every tensor is left out"),
        "too many samples": (
            (
                far.expand(2**40, 3),
                [far.expand(2**20, 3), far.expand(2**20, 2**20)],
                [None] * 2,
                "tanh",
            ),
            r"a result of shape \[1099511627776, 1048576, 1099514773504\] has more than 2\^63 bytes",
        ),
        "too many columns": (
            (far.expand(1, 2**31), [square] * 3, [None] * 3, "tanh"),
            r"more than 2\^63 bytes",
        ),
        "columns that wrap to zero": (
            (far.expand(1, 2**31), [square] * 4, [None] * 4, "tanh"),
            r"more than 2\^63 bytes",
        ),
    }


@pytest.mark.parametrize("case", list(bad_arguments("cpu")))
def test_bad_arguments(case, target):
    arguments, message = bad_arguments(target.device)[case]
    with pytest.raises(RuntimeError, match=message):
        target.op.mlp_jacobian(*arguments)


@pytest.mark.parametrize(
    "name", ["mlp_jacobian", "mlp_jacobian_with_error", "mlp_gram", "mlp_gram_with_error"]
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_results_beyond_all_addresses(device, name):
    x = torch.empty(1, 1, dtype=F64, device=device).expand(2**31, 1)
    with pytest.raises(RuntimeError, match=rf"^{name}: a result of shape .* more than 2\^63 bytes"):
        getattr(torch.ops.llr, name)(x, [x], [None], "tanh")


BAD_OUT: dict[str, tuple[Callable[[str], Tensor], str]] = {
    "shape": (
        lambda device: torch.empty(5, 2, 25, dtype=F64, device=device),
        r"out has shape \[5, 2, 25\]; expected \[5, 2, 26\]",
    ),
    "dtype": (
        lambda device: torch.empty(5, 2, 26, device=device),
        "out is Float on {here}; expected Double on {here}",
    ),
    "device": (
        lambda _: torch.empty(5, 2, 26, dtype=F64, device="meta"),
        r"out is (Double|torch.float64) on meta; expected (Double|torch.float64) on {here}",
    ),
    "itself": (
        lambda device: torch.empty(1, dtype=F64, device=device).expand(5, 2, 26),
        "overlaps itself in memory",
    ),
}


@pytest.mark.parametrize("case", list(BAD_OUT))
def test_bad_out(case, target):
    make, message = BAD_OUT[case]
    tensors = draw(Net((3, 4, 2)), F64, target.device)
    with pytest.raises(RuntimeError, match=message.replace("{here}", str(tensors.x.device))):
        target.op.mlp_jacobian.out(*tensors, "tanh", out=make(target.device))


@pytest.mark.parametrize("which", range(5))
def test_out_that_overlaps_an_argument(which, target):
    x, weights, biases = draw(Net((3, 4, 2)), F64, target.device)
    arguments = [x, *weights, *biases]
    count = 5 * 2 * 26
    memory = x.new_zeros(count + arguments[which].numel() - 1)
    out = memory[:count].view(5, 2, 26)
    arguments[which] = memory[count - 1 :].view(arguments[which].shape).copy_(arguments[which])
    x, w0, w1, b0, b1 = arguments
    with pytest.raises(
        RuntimeError, match=r"mlp_jacobian: out overlaps (x|a weight|a bias) in memory"
    ):
        target.op.mlp_jacobian.out(x, [w0, w1], [b0, b1], "tanh", out=out)


# --- first_nonfinite ---------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("length", range(34))
def test_first_nonfinite_at_every_position(length, dtype, device):
    clean = torch.linspace(-3, 3, length, dtype=dtype, device=device)
    assert _ops.first_nonfinite([clean]) == -1
    for position, bad in itertools.product(
        range(length), [float("nan"), float("inf"), -float("inf")]
    ):
        spoiled = clean.clone()
        spoiled[position] = bad
        assert _ops.first_nonfinite([spoiled]) == 0
        assert _ops.first_nonfinite([clean, torch.ones(3, device=device), spoiled, spoiled]) == 2


@both_dtypes
def test_first_nonfinite_at_the_edges_of_the_range(dtype, device):
    limits = torch.finfo(dtype)
    for value in (limits.max, -limits.max, limits.tiny, limits.smallest_normal / 8, -0.0, 0.0):
        assert _ops.first_nonfinite([torch.full((33,), value, dtype=dtype, device=device)]) == -1
    # Infinities of opposite sign, whose sum is NaN.
    both = torch.tensor([float("inf"), -float("inf")], dtype=dtype, device=device)
    assert _ops.first_nonfinite([both]) == 0


@both_dtypes
def test_first_nonfinite_sees_what_a_view_shows(dtype, device):
    large = torch.full((9, 11), float("nan"), dtype=dtype, device=device)
    view = large[1::2, 2::3].fill_(1.0)
    assert _ops.first_nonfinite([view, view.T, large.flatten()[:0]]) == -1
    assert _ops.first_nonfinite([view, large.T]) == 1
    assert (
        _ops.first_nonfinite([torch.ones(1, dtype=dtype, device=device).expand(1000, 1000)]) == -1
    )


def test_first_nonfinite_refuses_other_dtypes():
    with pytest.raises(RuntimeError, match=r"tensors\[1\] is Long; expected float32 or float64"):
        torch.ops.llr.first_nonfinite([torch.ones(3), torch.ones(3, dtype=torch.long)])


def test_first_nonfinite_of_nothing():
    assert _ops.first_nonfinite([]) == -1


# --- sizes that cannot be meant ----------------------------------------------------------------------


def repeated(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    """An expanded tensor of this shape, with one number in memory."""
    return torch.ones(1, dtype=dtype).expand(shape)


MANY = 2**42
NO_BIAS = [None]
FITTED = ("mlp", [2, 1], "tanh", [False])

TOO_LARGE: dict[str, tuple[Callable[[], object], str]] = {
    "svdvals: rows": (
        lambda: torch.ops.llr.svdvals(repeated(MANY, 30)),
        r"A of shape \[4398046511104, 30\], whose repeated numbers have to be copied, takes 960.0 TiB",
    ),
    "svdvals: columns": (
        lambda: torch.ops.llr.svdvals(repeated(3, MANY, dtype=F32)),
        "A of shape",
    ),
    "svdvals: matrices": (lambda: torch.ops.llr.svdvals(repeated(MANY, 1, 3, 3)), "A of shape"),
    "gram_factor: matrices": (lambda: torch.ops.llr.gram_factor(repeated(2, MANY, 3, 3)), "K of"),
    "gram_add_: positions": (
        lambda: torch.ops.llr.gram_add_(
            torch.zeros(3, 3, dtype=F64), repeated(3, MANY, 2), repeated(3, MANY, 1), True, True
        ),
        r"delta of shape \[3, 4398046511104, 2\], whose repeated numbers",
    ),
    "mlp_jacobian: result": (
        lambda: torch.ops.llr.mlp_jacobian(
            torch.ones(2**20, 2, dtype=F64), [repeated(2**11, 2)], NO_BIAS, "tanh"
        ),
        r"a result of shape \[1048576, 2048, 4096\] takes 64.0 TiB, more than the memory",
    ),
    "mlp_jacobian: x": (
        lambda: torch.ops.llr.mlp_jacobian(repeated(MANY, 2), [repeated(1, 2)], NO_BIAS, "tanh"),
        r"x of shape \[4398046511104, 2\], whose repeated numbers",
    ),
    "mlp_jacobian: weights": (
        lambda: torch.ops.llr.mlp_jacobian(
            torch.ones(1, 2, dtype=F64), [repeated(MANY, 2)], NO_BIAS, "tanh", [0, -1]
        ),
        r"more than|takes",
    ),
    "mlp_gram: result": (
        lambda: torch.ops.llr.mlp_gram(
            torch.ones(2**22, 2, dtype=F64), [repeated(1, 2)], NO_BIAS, "tanh"
        ),
        r"a result of shape \[4194304, 1, 4194304, 1\] takes 128.0 TiB",
    ),
    "lm_solve: starts": (
        lambda: torch.ops.llr.lm_solve(
            repeated(MANY, 2),
            repeated(1, 3, 2),
            repeated(1, 3, 1),
            torch.zeros(1).long().expand(MANY),
            *FITTED,
        ),
        r"theta of shape \[4398046511104, 2\], whose repeated numbers",
    ),
    "lm_solve: Jacobians": (  # 2^18 residuals and 2^18 parameters, 2 MiB each
        lambda: torch.ops.llr.lm_solve(
            repeated(1, 2**18),
            repeated(1, 2**18, 1),
            repeated(1, 2**18, 1),
            torch.zeros(1).long(),
            *("mlp", [1, 2**17, 1], "tanh", [False, False]),
        ),
        "the Jacobians of [48] simultaneous starts, of 262144 residuals and 262144 parameters",
    ),
    "first_nonfinite: windows": (
        lambda: torch.ops.llr.first_nonfinite(
            [torch.ones(2**22, dtype=F64).as_strided((2**21, 2**21), (1, 1))]
        ),
        r"tensors\[0\] of shape \[2097152, 2097152\], whose repeated numbers have to be copied, takes 32",
    ),
}


@pytest.mark.parametrize("case", list(TOO_LARGE))
def test_sizes_that_no_memory_holds(case):
    call, message = TOO_LARGE[case]
    with pytest.raises(RuntimeError, match=f"^{case.split(':')[0]}: .*{message}"):
        call()


def test_repeated_numbers_are_looked_at_once():
    assert torch.ops.llr.first_nonfinite([repeated(2**20, MANY)]) == -1
    nan = torch.tensor([float("nan")], dtype=F64).expand(MANY)
    assert torch.ops.llr.first_nonfinite([repeated(MANY), nan]) == 1

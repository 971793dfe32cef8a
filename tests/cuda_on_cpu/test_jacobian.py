"""The kernels that write a Jacobian: in every order of threads, on both paths, and how they store numbers.

tests/operators/test_jacobian.py also runs all of the operator's tests on the emulation. The tests here need
an emulation.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.oracles import ACTIVATIONS, Net, assert_matches, draw, loop_jacobian, name
from torch import Tensor

from llr.operators import formula

F64, F32 = torch.float64, torch.float32
both_dtypes = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])

# Computed completely in shared memory: one launch.
WHOLE = [
    Net((5, 3), 7),
    Net((1, 1, 1), 300),
    Net((2, 20, 1), 33),
    Net((7, 18, 2), 5, points=3),
    Net((3, 33, 5, 3), 9, biases=(True, False, True)),
    Net((4, 6, 6, 6, 6, 6, 6, 6, 2), 5),
    Net((16, 65, 1), 70, points=2, own_x=True),
]
# In pieces: too wide for that, too deep, or with more tensors than a launch takes columns of.
IN_PIECES = [
    Net((40, 150, 7, 2), 5),
    Net((300, 200, 2), 3, biases=(True, False)),
    Net((5000, 3), 3),
    Net((3, 129, 40, 2), 2, points=3, own_x=True),
    Net((2, *[3] * 9, 2), 5),
    Net((3, *[2] * 34, 3), 2),
]


def sizes(net: Net) -> list[int]:
    """The sizes of the tensors that have columns, in order of the columns."""
    found = []
    for (into, out), has in zip(itertools.pairwise(net.widths), net.has_bias, strict=True):
        found += [into * out, *([out] if has else [])]
    return found


def whole_vectors(
    rows: int, pitch: int, first: int, columns: int, V: int, misalignment: int
) -> int:
    """How many vectors of V numbers, at multiples of V, lie within these columns of the rows."""
    total = 0
    for row in range(rows):
        begin = misalignment + row * pitch + first
        total += max(0, (begin + columns) // V - -(-begin // V))
    return total


def in_float64(tensors: tuple) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    x, weights, biases = tensors
    return (
        x.double(),
        [w.double() for w in weights],
        [b if b is None else b.double() for b in biases],
    )


@both_dtypes
@pytest.mark.parametrize("net", WHOLE + IN_PIECES, ids=name)
def test_values_and_launches(net, dtype, emulated):
    tensors = draw(net, dtype)
    result = emulated.mlp_jacobian(*tensors, "tanh")
    hidden = len(net.widths) - 2
    in_pieces = 2 * hidden + -(-len(sizes(net)) // 32)  # activations, deltas, rows
    assert emulated.statistics()[2] == (1 if net in WHOLE else in_pieces)
    assert_matches(result, loop_jacobian(*tensors, "tanh"))


@both_dtypes
@pytest.mark.parametrize("widths", [(3, 17, 2), (9, 200, 30, 1)], ids=name)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_every_activation(activation, widths, dtype, emulated):
    tensors = draw(Net(widths, 5), dtype)
    assert_matches(emulated.mlp_jacobian(*tensors, activation), loop_jacobian(*tensors, activation))


@pytest.mark.parametrize("power", [5, 19, 20, 40, 300])
def test_angles_of_every_size(power, emulated):
    x, weights, biases = draw(Net((1, 9, 1), 20))
    tensors = (x * 2.0**power, weights, biases)
    result, expected = emulated.mlp_jacobian(*tensors, "sin"), loop_jacobian(*tensors, "sin")
    # One rounding of the angle changes its sine by an amount proportional to the angle.
    allowed = 1e-13 if power < 19 else None
    if allowed is None:  # only with exact angles: one product of powers of two, no bias
        weights = [2.0 ** torch.randint(-3, 4, (9, 1)).double(), weights[1]]
        tensors = (x * 2.0**power, weights, [None, biases[1]])
        result, expected = emulated.mlp_jacobian(*tensors, "sin"), loop_jacobian(*tensors, "sin")
    assert_matches(result, expected)


@both_dtypes
@pytest.mark.parametrize("misalignment", range(5))
@pytest.mark.parametrize("net", [*WHOLE[:4], IN_PIECES[0], IN_PIECES[2]], ids=name)
def test_only_ends_of_rows_are_written_number_by_number(net, misalignment, dtype, emulated):
    tensors = draw(net, dtype)
    expected = formula.mlp_jacobian(*in_float64(tensors), "tanh")
    memory = torch.full((expected.numel() + 32,), 12345.0, dtype=dtype)
    V = 16 // dtype.itemsize
    start = -(memory.data_ptr() // dtype.itemsize) % V + V + misalignment
    out = memory[start : start + expected.numel()].view(expected.shape)
    emulated.mlp_jacobian.out(*tensors, "tanh", out=out)
    assert_matches(out, expected)
    vectors, scalars, _ = emulated.statistics()
    rows, P = expected.numel() // expected.shape[-1], expected.shape[-1]
    whole = whole_vectors(rows, P, 0, P, V, misalignment % V)
    assert (vectors, scalars) == (whole, expected.numel() - whole * V)
    out.fill_(12345.0)
    assert (memory == 12345.0).all()  # nothing else was written


def test_groups_of_tensors_are_written_by_launches_of_their_own(emulated):
    net = IN_PIECES[-1]
    tensors = draw(net)
    result = emulated.mlp_jacobian(*tensors, "tanh")
    columns = sizes(net)
    P, rows = sum(columns), net.n * net.widths[-1]
    whole = 0
    for first in range(0, len(columns), 32):
        start, count = sum(columns[:first]), sum(columns[first : first + 32])
        whole += whole_vectors(rows, P, start, count, 2, result.data_ptr() // 8 % 2)
    vectors, scalars, launches = emulated.statistics()
    assert (vectors, scalars) == (whole, rows * P - 2 * whole)
    # Activation and deltas of 34 hidden layers, and three launches for 70 tensors.
    assert launches == 34 + 34 + 3


@pytest.mark.parametrize("points", [None, 4])
def test_signals_larger_than_the_scratch(points, emulated):
    # The scratch holds the signals of 26 samples. Only a few columns, so that the result is small.
    net = Net((1, 4096, 2, 300), 30 if points is None else 7, points=points)
    x, (w0, w1, w2), (b0, b1, b2) = draw(net)
    result = emulated.mlp_jacobian(x, [w0, w1, w2], [b0, b1, b2], "tanh", [-1, -1, -1, 300, -1, 0])
    z = torch.tanh(x @ w0.mT + b0.unsqueeze(-2)) @ w1.mT + b1.unsqueeze(-2)
    delta = w2.unsqueeze(-3) * torch.cosh(z).unsqueeze(-2) ** -2
    unit = torch.eye(300, dtype=F64).expand(*delta.shape[:-1], 300)
    assert emulated.statistics()[2] == 2 * 5  # in two parts
    assert_matches(result, torch.cat((unit, delta), -1))


def test_card_of_any_size(emulated):
    tensors = draw(Net((3, 20, 2), 200))
    wide = draw(Net((30, 150, 2), 20))
    expected = [loop_jacobian(*tensors, "tanh"), loop_jacobian(*wide, "tanh")]
    for multiprocessors in (1, 2, 1000):
        emulated.emulate(0, 0, 48 << 10, multiprocessors)
        for arguments, values in zip((tensors, wide), expected, strict=True):
            assert_matches(emulated.mlp_jacobian(*arguments, "tanh"), values)

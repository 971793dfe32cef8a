"""The kernel of Gram matrices: in every order of threads, in both arithmetics, for all remainders of sizes.

tests/operators/test_gram.py also runs all of the operators' tests on the emulation.
"""

from __future__ import annotations

import pytest
import torch
from helpers.oracles import Net, assert_matches, draw, loop_jacobian, name

from llr.operators import double_double

F64, F32 = torch.float64, torch.float32

NETS = [
    Net((5, 3), 11),
    Net((2, 20, 1), 33),
    Net((3, 17, 5), 13, biases=(True, False)),
    Net((2, 9, 8, 31), 3, biases=(False, True, False)),
    Net((4, 7, 2), 5, points=3),
    Net((4, 7, 40), 2, points=2, own_x=True),
    Net((2, *[3] * 17, 1), 5),
]


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("two_parts", [False, True], ids=["plain", "double-double"])
@pytest.mark.parametrize("net", NETS, ids=name)
def test_jacobian_times_itself(net, two_parts, dtype, emulated):
    tensors = draw(net, dtype)
    K = emulated.mlp_gram(*tensors, "tanh", None, two_parts)
    J = loop_jacobian(*tensors, "tanh").flatten(-3, -2)
    N = J.shape[-2]
    flat = (K[0] if two_parts else K).reshape(*J.shape[:-2], N, N)
    assert_matches(flat, J @ J.mT)
    assert torch.equal(flat, flat.mT)
    assert emulated.statistics()[0] == 0


@pytest.mark.parametrize("two_parts", [False, True], ids=["plain", "double-double"])
@pytest.mark.parametrize(
    ("T", "h", "w"), [(1, 1, 1), (1, 40, 17), (2, 3, 4), (3, 16, 33), (1, 0, 3), (2, 3, 0)]
)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32, 33, 64, 70])
def test_layers_added(n, T, h, w, two_parts, emulated):
    generator = torch.Generator().manual_seed(n)
    draws = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)  # noqa: E731
    K = torch.zeros(*([2] if two_parts else []), n, n, dtype=F64)
    expected = K.clone()
    for bias, weight in ((True, True), (False, True), (True, False), (False, False)):
        delta, a = draws(n, T, h), draws(n, T, w)
        emulated.gram_add_(K, delta, a, bias, weight)
        double_double.gram_add_(expected, delta, a, bias, weight)
    if two_parts:
        difference = (K[0] - expected[0]) + (K[1] - expected[1])
        assert difference.abs().max() <= 1e-28 * expected[0].abs().max().clamp(1e-300)
        assert torch.equal(K, K.mT)
    else:
        assert_matches(K, expected)
        assert torch.equal(K, K.mT)


def test_only_its_own_entries_are_written(emulated):
    memory = torch.zeros(40 * 40 + 200, dtype=F64)
    K = memory[100:-100].view(40, 40)
    delta, a = torch.ones(40, 1, 3, dtype=F64), torch.ones(40, 1, 2, dtype=F64)
    emulated.gram_add_(K, delta, a, False, True)
    assert (K == 6).all()
    K.zero_()
    assert (memory == 0).all()

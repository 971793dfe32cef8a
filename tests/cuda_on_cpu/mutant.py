"""Runs the operators of one kernel file with one of its barriers removed; test_mutants.py explains why.

python -m cuda_on_cpu.mutant FILE LINE, run by build.py. Line 0 removes no barrier. The program prints "right"
and ends with 0 if every result is right. It ends with 3 if the barrier is never reached.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from helpers.oracles import Net, assert_matches, draw, loop_jacobian
from helpers.targets import target
from torch import Tensor

from llr.operators import formula

F64 = torch.float64


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def jacobian(op: Any) -> None:
    # Computed completely in shared memory, with one group of samples per block.
    tensors = draw(Net((3, 5, 4, 2), 9, points=2))
    assert_matches(op.mlp_jacobian(*tensors, "tanh"), loop_jacobian(*tensors, "tanh"))
    # Several groups per block. To be fast, only the columns for which the block reads its inputs.
    tensors = draw(Net((1, 20, 30), 200))
    J = formula.mlp_jacobian(*tensors, "tanh")
    assert_matches(op.mlp_jacobian(*tensors, "tanh", [0, -1, -1, -1]), J[..., :20])


def gram(op: Any) -> None:
    tensors = draw(Net((20, 18, 3), 14))  # more terms than are staged at a time, more than one tile
    J = loop_jacobian(*tensors, "tanh").flatten(-3, -2)
    for two_parts in (False, True):
        K = op.mlp_gram(*tensors, "tanh", None, two_parts)
        assert_matches((K[0] if two_parts else K).reshape(42, 42), J @ J.mT)
        K = torch.zeros(*([2] if two_parts else []), 40, 40, dtype=F64)
        delta, a = random(40, 2, 3), random(40, 2, 5)  # two positions
        op.gram_add_(K, delta, a, True, True)
        G = torch.einsum("ntj,ntk->njk", delta, a).flatten(1)
        D = delta.sum(1)
        assert_matches(K[0] if two_parts else K, G @ G.mT + D @ D.mT)


def svdvals(op: Any) -> None:
    for shape in ((6, 9, 5), (40, 33), (700, 6)):
        A = random(*shape)
        assert_matches(op.svdvals(A), torch.linalg.svdvals(A))


RUN = {"jacobian.cuh": jacobian, "gram.cuh": gram, "svdvals.cuh": svdvals}


def main(file: str, line: str) -> int:
    op = target("emulated").op
    torch.manual_seed(0)
    op.emulate(2, 1, 163 * 1024, 1)
    op.remove_barriers(f"/{file}", int(line))
    RUN[file](op)
    print("right")
    return 3 if int(line) and op.removed_barriers() == 0 else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

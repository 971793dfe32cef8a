"""Models for the tests of what the public functions accept, and the check that results agree."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import llr
from llr.jacobians import reference

F64 = torch.float64


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))


def samples(n: int = 5, d: int = 3) -> Tensor:
    return torch.randn(n, d)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def agree(model: Any, plain: nn.Module, x: Any, dense: Tensor) -> None:
    """Assert that all functions that evaluate a model give the same for it and x as for the plain ones."""
    expected = reference.jacobian(plain, dense)
    torch.testing.assert_close(llr.jacobian(model, x), expected)
    exact = copy.deepcopy(plain).double()
    promoted = dense.double() if dense.is_floating_point() else dense
    J = reference.jacobian(exact, promoted).flatten(0, 1)
    torch.testing.assert_close(llr.gram(model, x).reshape(len(J), len(J)), J @ J.T)
    found = llr.rank(model, x)
    assert found.rank == int(torch.linalg.matrix_rank(J))
    torch.testing.assert_close(found.spectrum, torch.linalg.svdvals(J), rtol=0, atol=1e-10)
    assert llr.plan(model, x).shape == tuple(expected.shape)

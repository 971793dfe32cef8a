"""Models that run but cannot be differentiated: torch's error becomes one line by llr."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llr
from llr import landscape, lifting, models, recovery
from llr.jacobians import reference
from llr.recovery.train import train

from .refusals import complaint

CALLS: dict[str, Callable[[nn.Module, Tensor, Tensor], object]] = {
    "jacobian": lambda m, x, _: llr.jacobian(m, x),
    "jacobian by torch": lambda m, x, _: llr.jacobian(m, x, backend="torch"),
    "jacobian by loop": lambda m, x, _: llr.jacobian(m, x, backend="loop"),
    "jacobian with a graph": lambda m, x, _: llr.jacobian(m, x, create_graph=True),
    "gram": lambda m, x, _: llr.gram(m, x),
    "rank": lambda m, x, _: llr.rank(m, x),
    "rank by tsqr": lambda m, x, _: llr.rank(m, x, method="tsqr"),
    "criticality": landscape.criticality,
    "hessian": landscape.hessian_spectrum,
    "flow": lambda m, x, y: landscape.flow(m, x, y, [0.0, 0.1]),
    "fit": lambda m, x, y: recovery.levenberg_marquardt(m, recovery.initial(m, 2), x, y),
    "train": lambda m, x, y: train(m, recovery.initial(m, 2), x, y, steps=1),
}


class InPlace(nn.Module):
    """Overwrites the value that the derivative of the sigmoid needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(x)).mul_(2)


class _Mistaken(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(_: Any, g: Tensor) -> Tensor:
        return g @ torch.zeros(9, 9, dtype=g.dtype)


class Mistaken(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return _Mistaken.apply(self.layer(x))


@pytest.mark.parametrize("kind", [InPlace, Mistaken])
@pytest.mark.parametrize("name", CALLS)
def test_errors_of_derivatives(name: str, kind: type[nn.Module]) -> None:
    model, x, y = kind().double(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    with pytest.raises(ValueError, match="cannot") as caught:
        CALLS[name](model, x, y)
    assert complaint(caught.value) is None


def test_a_backend_asked_for_says_what_is_in_its_way() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(7, 2))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.embedding(x, self.weight, sparse=True)

    model, x = Sparse(), torch.tensor([[1, 2], [3, 3]])
    with pytest.raises(ValueError, match=r"^backend='torch' cannot compute .*; backend='auto'"):
        llr.jacobian(model, x, backend="torch")
    torch.testing.assert_close(llr.jacobian(model, x), reference.jacobian(model, x))
    assert "Facebook" not in llr.plan(model, x).reason


def test_losses_that_cannot_be_differentiated() -> None:
    def loss(a: Tensor, b: Tensor) -> Tensor:
        return torch.sigmoid(a - b).mul_(2).sum()

    model, x, y = models.mlp([3, 2, 2]).double(), torch.randn(5, 3), torch.randn(5, 2)
    for call in (landscape.criticality, lifting.lifted_critical_points):
        with pytest.raises(ValueError, match=r"^derivatives of the loss cannot be evaluated on"):
            call(model, x.double(), y.double(), loss=loss)


def test_what_the_model_raises_itself_is_passed_on() -> None:
    class Own(InPlace):
        def forward(self, _: Tensor) -> Tensor:
            raise RuntimeError("of the model")

    with pytest.raises(RuntimeError, match=r"^of the model$"):
        llr.jacobian(Own(), torch.randn(5, 3))

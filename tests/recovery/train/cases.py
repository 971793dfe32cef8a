"""Models, numbers and losses for the tests of training and of fits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization, TwoLayer, mlp
from llr.recovery.train import initial
from llr.recovery.train.machines import Factors, General, Kernels, Layers

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def some(model: nn.Module, count: int, scale: float = 0.5, seed: int = 0) -> Tensor:
    return initial(model, count, scale=scale, generator=torch.Generator().manual_seed(seed))


def placed(model: nn.Module, theta: Tensor) -> nn.Module:
    """The model in float64 with these parameters."""
    model = model.double()
    nn.utils.vector_to_parameters(theta, model.parameters())
    return model


def half_mean_square(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x).reshape(y.shape) - y).square().sum() / (2 * len(x))


class Own(nn.Module):
    """An MLP with its own forward, which llr traces; the last layer comes first among the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(4, 2), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sigmoid(self.first(x)))


class Tied(nn.Module):
    """One matrix in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.w) @ self.w


def frozen_bias() -> nn.Module:
    model = mlp([3, 4, 2])
    model[0].bias.requires_grad_(False)
    return model


def other_activation() -> nn.Module:
    model = Conv1dTwoLayer(5, 3, 2)
    model.act = nn.Softplus()
    return model


def vectors(*shape: int) -> Callable[[], Tensor]:
    return lambda: randn(*shape, seed=3)


def index_pairs() -> Tensor:
    return torch.tensor(
        [[0, 0], [1, 3], [2, 1], [1, 3], [0, 2], [2, 2], [1, 0]]
    )  # one of them twice


CASES: dict[str, tuple[Callable[[], nn.Module], type, Callable[[], Tensor], int]] = {
    **{
        name: (lambda name=name: mlp([3, 4, 5, 2], name), Layers, vectors(7, 3), 2)
        for name in ("tanh", "sigmoid", "relu", "softplus", "gelu", "silu", "erf", "sin")
    },
    "no biases": (lambda: TwoLayer(3, 4, bias=False), Layers, vectors(7, 3), 1),
    "deep linear": (lambda: DeepLinear([3, 4, 2]), Layers, vectors(7, 3), 2),
    "linear": (lambda: nn.Linear(3, 2), Layers, vectors(7, 3), 2),
    "traced": (Own, Layers, vectors(7, 3), 2),
    "flattened": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1)),
        Layers,
        vectors(7, 2, 3),
        1,
    ),
    "shared kernels": (lambda: Conv1dTwoLayer(5, 3, 2), Kernels, vectors(7, 5), 1),
    "own kernels": (
        lambda: Conv1dTwoLayer(5, 3, 2, shared=False, activation="sin"),
        Kernels,
        vectors(7, 5),
        1,
    ),
    "factorization": (lambda: MatrixFactorization(3, 2, 4), Factors, index_pairs, 1),
    "another activation than its name": (other_activation, General, vectors(7, 5), 1),
    "tied": (Tied, General, vectors(7, 3), 3),
    "frozen": (frozen_bias, General, vectors(7, 3), 2),
    "convolution": (
        lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 1)),
        General,
        vectors(7, 1, 5),
        1,
    ),
}

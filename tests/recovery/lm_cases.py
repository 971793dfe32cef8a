"""Models and data sets for fits by Levenberg-Marquardt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from llr.models import Conv1dTwoLayer, DeepLinear, MatrixFactorization, TwoLayer, mlp
from llr.operators import _ops
from llr.recovery import initial

from .train.cases import Own, Tied, frozen_bias

F64 = torch.float64
native = pytest.mark.skipif(not _ops.NATIVE, reason="needs the native library")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def placed(model: nn.Module, theta: Tensor) -> nn.Module:
    """The model in float64 with these values of its trainable parameters."""
    vector_to_parameters(theta, [p for p in model.double().parameters() if p.requires_grad])
    return model


def hooked() -> nn.Module:
    model = Conv1dTwoLayer(5, 3, 1)
    model.register_forward_hook(lambda _, inputs, outputs: 2 * outputs + inputs[0][:, :1])
    return model


def vectors(*shape: int) -> Callable[[], Tensor]:
    return lambda: normal(*shape, seed=3)


def other_activation() -> nn.Module:
    model = Conv1dTwoLayer(5, 3, 1)
    model.act = nn.Softplus()
    return model


def index_pairs() -> Tensor:
    return torch.tensor([[0, 0], [1, 3], [2, 1], [1, 3], [0, 2], [2, 2], [1, 0], [2, 3]])


Case = tuple[Callable[[], nn.Module], Callable[[], Tensor], int]
KNOWN: dict[str, Case] = {
    "two-layer": (lambda: TwoLayer(3, 3), vectors(20, 3), 1),
    "two-layer, few samples": (lambda: TwoLayer(3, 5, 2, output_bias=True), vectors(4, 3), 2),
    "no bias": (lambda: TwoLayer(3, 4, bias=False, activation="erf"), vectors(30, 3), 1),
    "deep": (lambda: mlp([3, 4, 3, 2], "softplus"), vectors(40, 3), 2),
    "deep linear": (lambda: DeepLinear([3, 2, 2]), vectors(9, 3), 2),
    "linear": (lambda: nn.Linear(3, 2), vectors(7, 3), 2),
    "traced": (Own, vectors(20, 3), 2),
    "traced, few samples": (Own, vectors(4, 3), 2),
    "flattened": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1)),
        vectors(30, 2, 3),
        1,
    ),
    "shared kernels": (lambda: Conv1dTwoLayer(5, 3, 2), vectors(30, 5), 1),
    "own kernels": (
        lambda: Conv1dTwoLayer(5, 3, 2, shared=False, activation="sin"),
        vectors(9, 5),
        1,
    ),
    "factorization": (lambda: MatrixFactorization(3, 2, 4), index_pairs, 1),
}
OTHERS: dict[str, Case] = {
    "tied": (Tied, vectors(7, 3), 3),
    "frozen": (frozen_bias, vectors(20, 3), 2),
    "hooked": (hooked, vectors(20, 5), 1),
    "other activation": (other_activation, vectors(20, 5), 1),
    "convolution": (
        lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 1)),
        vectors(30, 1, 5),
        1,
    ),
    "mixed activations": (
        lambda: nn.Sequential(
            nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2), nn.GELU(), nn.Linear(2, 1)
        ),
        vectors(50, 3),
        1,
    ),
}
CASES = KNOWN | OTHERS


def problem(case: str, starts: int = 5, sets: int = 3) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A model, starts, and data sets that it does not fit exactly."""
    build, samples, q = CASES[case]
    torch.manual_seed(0)
    model, x = build(), samples()
    theta = initial(model, starts, scale=0.6, generator=torch.Generator().manual_seed(1))
    xs = torch.stack([x.roll(k, 0) if k < 2 else x.flip(0) for k in range(sets)])
    return model, theta, xs, normal(sets, len(x), q, seed=2)

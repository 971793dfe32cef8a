"""Models of every kind for the random calls of test_fuzz.py, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from llr import models


class Complex(nn.Module):
    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.register_buffer("phase", torch.randn(2, dtype=torch.cfloat))
        self.factor = nn.Parameter(torch.randn(2, dtype=torch.cfloat), requires_grad=not frozen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.inner(x) * self.phase
        return torch.view_as_real(z * self.factor)


class Hollow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[:, :0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(3, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x[:, None])[0][:, -1]


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def plain(*widths: int) -> nn.Module:
    return models.mlp(list(widths), "tanh")


@torch.no_grad()
def twins() -> nn.Module:
    model = models.TwoLayer(3, 3)
    model[0].weight[1] = model[0].weight[0]
    return model


def function(params: Any, x: Any) -> Any:
    return torch.tanh(x @ params["w"])


def scripted() -> Any:
    return torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)))


MODELS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: plain(3, 4, 1),
    "mlp, two outputs": lambda: plain(3, 4, 2),
    "deep": lambda: plain(3, 2, 2, 1),
    "relu": lambda: models.mlp([3, 3, 1], "relu"),
    "float64": lambda: plain(3, 4, 1).double(),
    "twins": twins,
    "two layer": lambda: models.TwoLayer(3, 4, bias=False).double(),
    "norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
    "deep linear": lambda: models.DeepLinear([3, 2, 2]),
    "factorization": lambda: models.MatrixFactorization(3, 2, 3),
    "filter": lambda: models.Conv1dTwoLayer(3, 2, 2),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Flatten()),
    "embedding": lambda: nn.Sequential(
        nn.Embedding(7, 2, sparse=True), nn.Flatten(), nn.Linear(6, 2)
    ),
    "bag": lambda: nn.Sequential(nn.EmbeddingBag(7, 3, sparse=True), nn.Linear(3, 2)),
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)),
    "batch norm at rest": lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval(),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)),
    "recurrent": Recurrent,
    "tied": tied,
    "parallel": lambda: nn.DataParallel(plain(3, 4, 2)),
    "scripted": scripted,
    "traced": lambda: torch.jit.trace(plain(3, 4, 2), torch.randn(5, 3)),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 2)),
    "meta": lambda: plain(3, 4, 2).to("meta"),
    "norm on meta": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).to("meta"),
    "half": lambda: plain(3, 4, 2).half(),
    "bfloat16": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).bfloat16(),
    "mixed": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1).double()),
    "complex": lambda: Complex(False),
    "complex, frozen": lambda: Complex(True),
    "hollow": Hollow,
    "width 0": lambda: nn.Sequential(nn.Linear(3, 0), nn.Tanh(), nn.Linear(0, 2)),
    "no outputs": lambda: nn.Linear(3, 0),
    "no parameters": lambda: nn.Sequential(nn.Tanh()),
    "frozen": lambda: plain(3, 4, 2).requires_grad_(False),
    "identity": nn.Identity,
    "function": lambda: function,
    "class": lambda: nn.Linear,
    "string": lambda: "mlp:3-4-1",
    "list": lambda: [plain(3, 4, 1)],
    "none": lambda: None,
    "number": lambda: 3,
    "tensor": lambda: torch.randn(4, 3),
}
USUAL = ["mlp", "mlp, two outputs", "deep", "float64", "twins", "two layer", "norm", "relu"]

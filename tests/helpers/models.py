"""Models of every kind for the tests of llr.jacobian, each with samples."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .oracles import mlp

F64, F32 = torch.float64, torch.float32


class Model(nn.Module):
    """Layers, parameters and buffers by name, and a forward that is a function of the module and x."""

    def __init__(self, forward: Callable[[Model, Tensor], object], **parts: nn.Module | Tensor):
        super().__init__()
        self.run = forward
        for name, part in copy.deepcopy(parts).items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def outputs(forward: Callable[[Tensor], object]) -> Callable[[], nn.Module]:
    """A model that applies this function to the four outputs of a layer."""
    return lambda: Model(lambda m, x: forward(m.a(x).cos()), a=nn.Linear(3, 4))


def samples(n: int = 5, *shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(n, *(shape or (3,)), dtype=dtype)


# name -> (model, samples)
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (lambda: mlp(3, 4, 2), samples),
    "traced": (
        lambda: Model(
            lambda m, x: m.b(torch.sigmoid(m.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2)
        ),
        samples,
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)),
        samples,
    ),
    "mixed activations": (
        lambda: nn.Sequential(
            nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)
        ),
        samples,
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)),
        lambda: samples(4, 2, 5),
    ),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)),
        lambda: samples(4, 1, 5, 4),
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 2)),
        lambda: torch.randint(7, (5, 2)),
    ),
    "one token": (
        lambda: nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2)),
        lambda: torch.arange(5),
    ),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
        lambda: samples(3, 5, 4),
    ),
    "batch norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval(), samples),
    "samples of sequences": (lambda: mlp(3, 4, 2), lambda: samples(4, 6, 3)),
    "single numbers": (outputs(lambda y: y.sum(1)), samples),
    "matrices": (outputs(lambda y: y.reshape(-1, 2, 2)), samples),
    "transposed matrices": (outputs(lambda y: y.reshape(-1, 2, 2).mT), samples),
    "tuple": (outputs(lambda y: (y[:, 0], y[:, 1:])), samples),
    "nested": (
        outputs(lambda y: {"z": [y, None], "a": (y.reshape(-1, 2, 2), {"k": y[:, 0]})}),
        samples,
    ),
    "an output of no parameters": (outputs(lambda y: (y, torch.ones_like(y).detach())), samples),
}
LOOPED = {
    "lstm": (
        lambda: Model(
            lambda m, x: m.out(m.rnn(x)[0][:, -1]),
            rnn=nn.LSTM(2, 3, batch_first=True),
            out=nn.Linear(3, 2),
        ),
        lambda: samples(3, 4, 2),
    ),
    "gru": (
        lambda: Model(lambda m, x: m.rnn(x)[0], rnn=nn.GRU(2, 3, batch_first=True)),
        lambda: samples(3, 4, 2),
    ),
}
EVERY = MODELS | LOOPED


def make(case: str) -> tuple[nn.Module, Tensor]:
    model, x = EVERY[case]
    return model().double(), x()


def affine(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x @ p["w"] + p["b"]) * p["scale"]


def affine_params(*batch: int) -> dict[str, Tensor]:
    shapes = {"w": (3, 2), "b": (2,), "scale": ()}
    return {name: torch.randn((*batch, *shape), dtype=F64) for name, shape in shapes.items()}
